//! All attacks. A file per kind of door.

mod asks;
mod egress;
mod files;
mod kernel;
mod out;
mod planted;
mod pose;
mod processes;
mod proxy;

use super::attack::Attack;

/// All of them.
pub(super) fn all() -> Vec<Attack> {
    [
        processes::ALL,
        files::ALL,
        proxy::ALL,
        asks::ALL,
        out::ALL,
        egress::ALL,
        pose::ALL,
        kernel::ALL,
        planted::ALL,
    ]
    .concat()
}
