"""Everything of a model directory that is not a weight: config, tokenizer and side files, card, provenance."""
