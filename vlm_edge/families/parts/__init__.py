"""Parts that several families share: language models, text decoders, vision towers, masks, attention sites."""
