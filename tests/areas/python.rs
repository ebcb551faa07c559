//! Debian's Python, dynamic: scripts with the modules that the issue names, native and cloaked alike, and its HTTP server.

use cloak_tests::server::free_port;
use cloak_tests::{Case, Launcher, Scratch, Server, needs};
use rustix::process::Signal;
use std::process::Command;

fn python() -> Option<Case> {
    needs::cloaked_program("/usr/bin/python3").map(|path| Case::new(path).env("PYTHONDONTWRITEBYTECODE", "1"))
}

fn script(text: &str) {
    if let Some(case) = python() {
        case.arg("-c").arg(text).succeeds_as_native();
    }
}

#[test]
fn version_with_ssl_and_sqlite3() {
    script("import sys, ssl, sqlite3; print(sys.version, ssl.OPENSSL_VERSION, sqlite3.sqlite_version)");
}

#[test]
fn exit_codes_and_tracebacks() {
    for text in [
        "raise SystemExit(9)",
        "import sys; sys.exit('a message')",
        "def f(): g()\nf()",
        "import os; os.abort()",
    ] {
        let Some(case) = python() else { return };
        case.arg("-c").arg(text).same_as_native();
    }
}

#[test]
fn json_re_zlib_hashlib() {
    script(
        "import json, re, zlib, hashlib\n\
         data = [{'i': i, 's': chr(97 + i % 26) * (i % 50), 'f': i / 7} for i in range(20000)]\n\
         text = json.dumps(data, sort_keys=True)\n\
         assert json.loads(text) == data\n\
         print(len(text), hashlib.sha256(text.encode()).hexdigest(), hashlib.blake2b(text.encode()).hexdigest()[:16])\n\
         packed = zlib.compress(text.encode(), 9); assert zlib.decompress(packed).decode() == text\n\
         print(len(packed), zlib.crc32(packed))\n\
         print(len(re.findall(r'\"s\": \"(a+)\"', text)), re.sub(r'[0-9]+', '#', text)[:80])",
    );
}

#[test]
fn sqlite3_in_memory_and_in_a_file() {
    let Some(case) = python() else { return };
    let scratch = Scratch::new();
    let text = "import sqlite3, os, sys\n\
         for name in (':memory:', sys.argv[1]):\n\
         \x20   c = sqlite3.connect(name)\n\
         \x20   c.execute('create table t(a integer primary key, b text)')\n\
         \x20   c.executemany('insert into t values(?, ?)', ((i, str(i * i)) for i in range(5000)))\n\
         \x20   c.commit()\n\
         \x20   print(c.execute('select count(*), sum(length(b)) from t').fetchone())\n\
         \x20   c.close()\n\
         os.unlink(sys.argv[1])";
    case.arg("-c")
        .arg(text)
        .arg(scratch.join("t.db"))
        .volume(scratch.path())
        .succeeds_as_native();
}

#[test]
fn ssl_over_a_socket_pair() {
    let Some(case) = python() else { return };
    let Some(openssl) = needs::host_program("openssl") else {
        return;
    };
    let scratch = Scratch::new();
    let (key, cert) = (scratch.join("key.pem"), scratch.join("cert.pem"));
    let made = Command::new(openssl)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
        ])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = "import ssl, socket, sys, threading\n\
         a, b = socket.socketpair()\n\
         server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); server.load_cert_chain(sys.argv[2], sys.argv[1])\n\
         client = ssl.create_default_context(cafile=sys.argv[2])\n\
         def serve():\n\
         \x20   with server.wrap_socket(a, server_side=True) as s:\n\
         \x20       while (got := s.recv(65536)): s.sendall(got[::-1])\n\
         t = threading.Thread(target=serve); t.start()\n\
         with client.wrap_socket(b, server_hostname='localhost') as s:\n\
         \x20   print(s.version(), s.cipher()[0])\n\
         \x20   for n in (1, 100, 10000):\n\
         \x20       m = bytes(i % 251 for i in range(n)); s.sendall(m); got = b''\n\
         \x20       while len(got) < n: got += s.recv(65536)\n\
         \x20       print(n, sum(got))\n\
         \x20   s.unwrap().close()\n\
         t.join(60)";
    case.arg("-c")
        .arg(text)
        .arg(key)
        .arg(cert)
        .volume(scratch.path())
        .succeeds_as_native();
}

#[test]
fn threading_and_multiprocessing_dummy() {
    script(
        "import threading, queue\nfrom multiprocessing.dummy import Pool\n\
         q, out, lock = queue.Queue(10), [0], threading.Lock()\n\
         def work():\n\
         \x20   while (item := q.get()) is not None:\n\
         \x20       with lock: out[0] += item * item\n\
         threads = [threading.Thread(target=work) for _ in range(16)]\n\
         [t.start() for t in threads]; [q.put(i) for i in range(5000)]; [q.put(None) for _ in threads]; [t.join() for t in threads]\n\
         print(out[0]); print(sum(Pool(8).map(lambda x: x ** 3, range(2000))))\n\
         e = threading.Event(); t = threading.Timer(0.01, e.set); t.start(); print(e.wait(60))\n\
         b = threading.Barrier(5); r = []\n\
         ts = [threading.Thread(target=lambda: r.append(b.wait())) for _ in range(5)]; [t.start() for t in ts]; [t.join() for t in ts]\n\
         print(sorted(r))",
    );
}

#[test]
fn sockets_and_asyncio() {
    script(
        "import asyncio\n\
         async def echo(r, w):\n\
         \x20   while (line := await r.readline()): w.write(line.upper()); await w.drain()\n\
         \x20   w.close()\n\
         async def talk(port, n):\n\
         \x20   r, w = await asyncio.open_connection('127.0.0.1', port); total = 0\n\
         \x20   for i in range(20):\n\
         \x20       w.write(f'client {n} line {i}\\n'.encode()); await w.drain(); total += len(await r.readline())\n\
         \x20   w.close(); await w.wait_closed(); return total\n\
         async def main():\n\
         \x20   server = await asyncio.start_server(echo, '127.0.0.1', 0)\n\
         \x20   port = server.sockets[0].getsockname()[1]\n\
         \x20   print(sum(await asyncio.gather(*(talk(port, n) for n in range(100)))))\n\
         \x20   print(await asyncio.wait_for(asyncio.to_thread(sum, range(100000)), 60))\n\
         \x20   try: await asyncio.wait_for(asyncio.sleep(1000), 0.01)\n\
         \x20   except asyncio.TimeoutError: print('timed out')\n\
         \x20   server.close(); await server.wait_closed()\n\
         asyncio.run(main())",
    );
}

#[test]
fn mmap_and_ctypes() {
    let Some(case) = python() else { return };
    let scratch = Scratch::new();
    let text = "import mmap, ctypes, sys\n\
         f = open(sys.argv[1], 'w+b'); f.truncate(1 << 20)\n\
         m = mmap.mmap(f.fileno(), 0); m[4096:4101] = b'hello'; m.flush()\n\
         f.seek(4096); print(f.read(5)); m.resize(2 << 20); print(len(m)); m.close()\n\
         libc = ctypes.CDLL(None, use_errno=True); libc.strlen.argtypes = [ctypes.c_char_p]\n\
         print(libc.strlen(b'twelve bytes'))\n\
         C = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))\n\
         a = (ctypes.c_int * 6)(5, 3, 9, 1, 7, 2); libc.qsort(a, 6, 4, C(lambda x, y: x[0] - y[0])); print(list(a))\n\
         print(libc.open(b'/nowhere', 0), ctypes.get_errno())";
    case.arg("-c")
        .arg(text)
        .arg(scratch.join("file"))
        .volume(scratch.path())
        .succeeds_as_native();
}

#[test]
fn http_server_answers_curl() {
    let (Some(case), Some(curl)) = (python(), needs::host_program("curl")) else {
        return;
    };
    let scratch = Scratch::new();
    scratch.write("page.txt", "a page\n".repeat(50_000));
    std::fs::create_dir(scratch.join("below")).expect("scratch is writable");
    let answers = |launcher: &Launcher| {
        let port = free_port();
        let case = case
            .clone()
            .args(["-m", "http.server", "--bind", "127.0.0.1"])
            .arg(port.to_string());
        let case = case.in_folder(scratch.path()).volume(scratch.path());
        let server = Server::start(&case, launcher, port);
        let fetch = |path: &str| {
            let url = format!("http://{}{path}", server.address());
            let done = Command::new(&curl)
                .args(["-s", "-w", "%{http_code}", "--noproxy", "*", &url])
                .output();
            done.expect("curl runs").stdout
        };
        let got: Vec<_> = ["/page.txt", "/", "/absent", "/below/"]
            .into_iter()
            .map(fetch)
            .collect();
        server.stop(Signal::INT);
        got
    };
    let native = answers(&Launcher::Native);
    assert!(native[0].ends_with(b"200") && native[2].ends_with(b"404"));
    assert!(
        answers(&Launcher::under_test()) == native,
        "the cloaked server answers otherwise than the native one"
    );
}
