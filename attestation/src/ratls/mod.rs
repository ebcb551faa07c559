//! RA-TLS.
