"""A checkpoint folder's files: source, config, weights, processors, tokenizers, chat template, generation settings."""
