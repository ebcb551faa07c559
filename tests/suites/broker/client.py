"""A guest in Python: the broker's protocol, evidence, JOSE and the token, each by other people's libraries.

    client.py policy FOLDER             prints a policy that accepts this guest; makes its host key
    client.py get FOLDER URL PATH       attests with software evidence and writes the secret to standard output
"""

import base64
import hashlib
import json
import pathlib
import sys
import time

import cbor2
import jwt
import requests
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from jwcrypto import jwe, jwk

MEASUREMENT = b"\x33" * 48


def host_key(folder):
    file = pathlib.Path(folder) / "host.pem"
    if not file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        file.write_bytes(key.private_bytes(*pem))
    return serialization.load_pem_private_key(file.read_bytes(), None)


def point(key):
    form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    return key.public_key().public_bytes(*form)


def policy(folder):
    digest = hashlib.sha256(point(host_key(folder))).hexdigest()
    print(f'platforms = ["software"]\n[software]\nkey_digests = ["{digest}"]\n')
    print(f'[[reference]]\nname = "guest"\nversion = "1"\nsoftware_measurement = ["{MEASUREMENT.hex()}"]')


def evidence(folder, report_data):
    """The envelope of docs/evidence.cddl around a COSE_Sign1 (RFC 9052, section 4.4)."""
    key = host_key(folder)
    statement = {
        265: "tag:cloak.dev,2026:software-1",
        6: int(time.time()),
        -75100: MEASUREMENT,
        -75101: bytes(32),
        -75102: report_data,
    }
    protected, payload = cbor2.dumps({1: -7}), cbor2.dumps(statement)
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = utils.decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    sign1 = cbor2.dumps([protected, {}, payload, signature])
    envelope = {265: "tag:cloak.dev,2026:evidence-1", -75000: "software", -75001: sign1, -75007: point(key)}
    return cbor2.dumps(envelope)


def get(folder, url, path):
    session = requests.Session()
    # What the environment says of certificates would count for more.
    session.trust_env = False
    session.verify = f"{folder}/tls.crt"

    def ask(method, where, body=None):
        answer = session.request(method, f"{url}/kbs/v0/{where}", json=body, timeout=30)
        if answer.status_code != 200:
            sys.exit(f"{where}: {answer.status_code} {answer.text}")
        return answer.json()

    request = {"version": "0.4.0", "tee": "software", "extra-params": {"supported-hash-algorithms": ["sha256"]}}
    challenge = ask("POST", "auth", request)
    assert challenge["extra-params"]["selected-hash-algorithm"] == "sha256", challenge

    # Curves differ, so that each is tried with somebody else's JOSE.
    for curve in "P-256", "P-384", "P-521":
        tee = jwk.JWK.generate(kty="EC", crv=curve)
        public = tee.export_public(as_dict=True) | {"alg": "ECDH-ES+A256KW"}
        secret = attest_and_get(folder, ask, request, public, tee, path)
    tee = jwk.JWK.generate(kty="RSA", size=2048)
    public = tee.export_public(as_dict=True) | {"alg": "RSA-OAEP-256"}
    assert attest_and_get(folder, ask, request, public, tee, path) == secret
    sys.stdout.buffer.write(secret)


def attest_and_get(folder, ask, request, public, tee, path):
    public = {name: value for name, value in public.items() if name != "kid"}
    nonce = ask("POST", "auth", request)["nonce"]
    runtime = {"additional-evidence": "", "nonce": nonce, "tee-pubkey": public}
    canonical = json.dumps(runtime, sort_keys=True, separators=(",", ":")).encode()
    report_data = hashlib.sha256(canonical).digest() + bytes(32)
    envelope = base64.urlsafe_b64encode(evidence(folder, report_data)).rstrip(b"=").decode()
    body = {
        "runtime-data": {"nonce": nonce, "tee-pubkey": public},
        "tee-evidence": {"primary_evidence": {"cloak-evidence": envelope}, "additional_evidence": ""},
    }
    token = ask("POST", "attest", body)["token"]
    check_token(token, public)
    answer = ask("GET", f"resource/{path}")
    opened = jwe.JWE()
    opened.deserialize(json.dumps(answer), key=tee)
    return opened.payload


def check_token(token, public):
    signer = jwt.decode(token, options={"verify_signature": False})["jwk"]
    claims = jwt.decode(token, jwt.PyJWK(signer).key, algorithms=["ES256"])
    assert claims["tee-pubkey"] == public, claims
    assert claims["submods"]["cloak"]["cloak.measurement"] == MEASUREMENT.hex(), claims


if __name__ == "__main__":
    {"policy": policy, "get": get}[sys.argv[1]](*sys.argv[2:])
