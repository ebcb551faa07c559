//! Names of secrets and a broker's configuration.
#![no_main]

use cloak_broker::ResourcePath;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(path) = text.parse::<ResourcePath>() {
        assert_eq!(path.as_str().parse(), Ok(path.clone()));
        assert_eq!(path.as_str().split('/').count(), 3);
        assert!(!path.as_str().contains("..") || path.as_str().split('/').all(|part| part != ".."));
    }
    let _ = toml::from_str::<cloak_broker::Config>(text);
});
