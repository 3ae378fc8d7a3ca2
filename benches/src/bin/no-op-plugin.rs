//! The baseline for the CNI plugin: a chained plugin that prints what came before it, and does nothing else.

use std::{collections::BTreeMap, io::Read};

use serde_json::value::RawValue;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let config: BTreeMap<String, &RawValue> = serde_json::from_str(&text)?;
    print!("{}", config.get("prevResult").ok_or("there is no prevResult")?);
    Ok(())
}
