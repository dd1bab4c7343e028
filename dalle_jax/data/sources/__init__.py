"""What lists pictures, captions and texts, and how they become records."""
