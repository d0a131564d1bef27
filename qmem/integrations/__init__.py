"""What brings qmem and other programs together: accuracy runs, replays of published measurements."""
