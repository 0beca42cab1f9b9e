//! versitygw: an S3 server on a folder.
