"""The run-time checker that every annotation of this package goes through."""

from beartype import BeartypeConf, beartype

# An int serves where a float is asked for (PEP 484), so that `guidance=2` is no error.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
