//! The committed YAML is what the types say.

const COMMITTED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../charts/opencode-operator/files/crds.yaml"
);

#[test]
fn the_committed_yaml_is_fresh() {
    let text = std::fs::read_to_string(COMMITTED).unwrap();
    let committed: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
    let generated: Vec<_> = crds::schema::all()
        .iter()
        .map(|crd| serde_json::to_value(crd).unwrap())
        .collect();
    assert_eq!(
        committed, generated,
        "run `cargo run -p crds --example crdgen > charts/opencode-operator/files/crds.yaml`"
    );
}
