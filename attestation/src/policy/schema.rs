//! The JSON schema of a policy, for editors and other tools.

use super::Policy;

/// The schema (draft 2020-12). TOML and JSON share a data model, so it holds for the TOML file.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(Policy).to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_is_closed() {
        let schema = json_schema();
        assert_eq!(schema["additionalProperties"], false);
        for (name, part) in schema["$defs"].as_object().unwrap() {
            if part["type"] == "object" && part.get("properties").is_some() {
                assert_eq!(part["additionalProperties"], false, "{name}");
            }
        }
    }
}
