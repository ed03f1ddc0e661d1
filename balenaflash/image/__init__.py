"""What is inside an image. Nothing here opens a device for writing."""
