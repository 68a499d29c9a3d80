"""Parts to a number: the queue of keys, and the InfoNCE logits and loss."""
