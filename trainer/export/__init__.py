"""A trained model as a folder that clients load: weights, config, tokenizer, prompts."""
