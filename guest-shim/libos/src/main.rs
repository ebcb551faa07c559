//! The libos image.
#![no_std]
#![no_main]
