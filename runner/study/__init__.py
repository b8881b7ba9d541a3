"""The study: mask, data, training, evaluation, audit. The only home of torch and transformers."""
