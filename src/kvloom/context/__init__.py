"""What the model sees: manifests, the plans that realise them, and weaving."""
