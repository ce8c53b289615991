//! A watch channel that wakes its receivers first come, first served.
