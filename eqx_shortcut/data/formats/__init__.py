"""The formats that images are stored in, one a module: each opens its files as `Records`."""
