//! Prints the YAML of every CustomResourceDefinition:
//! `cargo run -p crds --example crdgen > charts/opencode-operator/files/crds.yaml`.
//!
//! An example and not a binary, so that YAML stays a dependency of development.

use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "# Generated from crds/src by `cargo run -p crds --example crdgen`: do not edit."
    )?;
    for crd in crds::schema::all() {
        write!(out, "---\n{}", serde_saphyr::to_string(&crd)?)?;
    }
    Ok(())
}
