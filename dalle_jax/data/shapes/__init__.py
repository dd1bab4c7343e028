"""The data set `captioned_shapes`: small images of coloured shapes, with captions that a program can check exactly.

`scene` samples scenes, `render` turns a scene into an image, `captions` writes and parses captions, `partition` divides
both between training and validation, and `builder` stores the data set on disk.
"""
