"""`captioned_shapes`: small pictures of coloured shapes whose captions can be checked exactly.

`scene` draws scenes, `render` paints them, `captions` puts them into words and back, `builder` keeps them on disk.
"""
