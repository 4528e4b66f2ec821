//! The credential proxy. In the making.
