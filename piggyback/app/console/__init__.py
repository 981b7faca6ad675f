"""What commands share: messages, signals, progress, memory."""
