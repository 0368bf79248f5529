"""What the processes of this machine share in files and memory."""
