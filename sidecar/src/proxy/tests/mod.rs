//! The proxy as a whole: a raw client in front, doubles of providers behind, real sockets between.

mod calls;
mod faults;
mod hostile;
mod quiet;
mod rig;
mod spend;
mod targets;
