"""Networks that others have trained, and the readers of their files: autoencoders, Inception, EfficientNet, classifiers."""
