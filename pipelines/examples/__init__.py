"""Programs to start from; nothing imports them."""
