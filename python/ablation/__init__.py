"""What the trainer's methods are worth, arm by arm."""
