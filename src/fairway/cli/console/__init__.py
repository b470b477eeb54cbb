"""What the verbs share: the application, options, output, progress, and how a command ends."""
