//! Names of secrets and a broker's configuration.
#![no_main]

use cloak_broker::ResourcePath;
use cloak_fuzz_seeds::plant;
use libfuzzer_sys::fuzz_target;

const CONFIGURATION: &str = r#"
listen = "127.0.0.1:8080"
database = "sqlite:kbs.sqlite"
root_key = "root.key"
token_key = "token.key"
issuer = "https://localhost"
tls_certificate = "tls.crt"
tls_key = "tls.key"
admin_token_digest = "admin.digest"
attestation_policy = "policy.toml"
collateral = ["collateral.json"]

[limits]
sessions = 100
"#;

fuzz_target!(init: plant(|| ["default/key/disk-1.0", CONFIGURATION]), |text: &str| {
    if let Ok(path) = text.parse::<ResourcePath>() {
        assert_eq!(path.as_str().parse(), Ok(path.clone()));
        assert_eq!(path.as_str().split('/').count(), 3);
        assert!(path.as_str().split('/').all(|part| part != ".." && part != "."));
    }
    let _ = toml::from_str::<cloak_broker::Config>(text);
});
