//! Language run-times with large reservations and threads of their own: Node.js and Java.

use cloak_tests::server::free_port;
use cloak_tests::{Case, Launcher, Scratch, Server, needs};
use rustix::process::Signal;
use std::process::Command;

#[test]
fn node_computes() {
    let Some(node) = needs::cloaked_program("/usr/bin/node") else {
        return;
    };
    let text = "const c = require('crypto'), z = require('zlib'), fs = require('fs');
        const m = new Map(); for (let i = 0; i < 300000; i++) m.set('k' + i % 5000, i);
        let s = 0; for (const v of m.values()) s += v; console.log(s, process.argv.slice(2).join());
        console.log(c.createHash('sha256').update('x'.repeat(1e6)).digest('hex'));
        console.log(z.gunzipSync(z.gzipSync(Buffer.alloc(1e6, 'abc'))).length);
        (async () => { for (let i = 0; i < 100; i++) await fs.promises.stat('/etc/passwd');
            await new Promise(r => setTimeout(r, 5)); console.log('done'); process.exitCode = 5; })();";
    let outcome = Case::new(node)
        .args(["-e", text, "--", "a", "b c"])
        .same_as_native();
    assert_eq!(outcome.status.shell_code(), 5, "{}", outcome.error_text());
}

#[test]
fn node_workers() {
    let Some(node) = needs::cloaked_program("/usr/bin/node") else {
        return;
    };
    let scratch = Scratch::new();
    let script = scratch.write(
        "workers.js",
        "const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
         if (isMainThread) {
             const shared = new Int32Array(new SharedArrayBuffer(4));
             const done = [...Array(4).keys()].map(n => new Promise((ok, bad) => {
                 const w = new Worker(__filename, { workerData: { n, shared } });
                 w.on('message', ok); w.on('error', bad); }));
             Promise.all(done).then(r => console.log(r.join(), Atomics.load(shared, 0)));
         } else {
             let x = 0; for (let i = 0; i < 1e6; i++) x = (x * 31 + i * workerData.n) >>> 0;
             for (let i = 0; i < 1000; i++) Atomics.add(workerData.shared, 0, 1);
             parentPort.postMessage(x);
         }",
    );
    Case::new(node)
        .arg(script)
        .volume(scratch.path())
        .succeeds_as_native();
}

#[test]
fn node_http_server() {
    let (Some(node), Some(curl)) = (
        needs::cloaked_program("/usr/bin/node"),
        needs::host_program("curl"),
    ) else {
        return;
    };
    let text = "require('http').createServer((q, r) => { let n = 0; q.on('data', d => n += d.length);
        q.on('end', () => { r.setHeader('X-Seen', q.method); r.end(q.url + ' ' + n + '\\n'); }); })
        .listen(+process.argv[1], '127.0.0.1')";
    let scratch = Scratch::new();
    let body = scratch.write("body", vec![b'b'; 3_000_000]);
    let session = |launcher: &Launcher| {
        let port = free_port();
        let case = Case::new(&node).args(["-e", text]).arg(port.to_string());
        let server = Server::start(&case, launcher, port);
        let upload = format!("@{}", body.display());
        let fetch = |path: &str, more: &[&str]| {
            let url = format!("http://127.0.0.1:{port}{path}");
            let done = Command::new(&curl)
                .args(["-s", "--noproxy", "*", &url])
                .args(more)
                .output()
                .expect("curl runs");
            String::from_utf8_lossy(&done.stdout).into_owned()
        };
        let got = [fetch("/a?b=c", &[]), fetch("/up", &["--data-binary", &upload])];
        server.stop(Signal::TERM);
        got
    };
    let native = session(&Launcher::Native);
    assert_eq!(native, ["/a?b=c 0\n", "/up 3000000\n"]);
    assert_eq!(session(&Launcher::under_test()), native);
}

/// The launcher of the Java that is installed, past the symbolic links of `/etc/alternatives`.
fn java(tool: &str) -> Option<std::path::PathBuf> {
    needs::cloaked_program(tool)
        .map(|path| path.canonicalize().expect("an installed program has a real path"))
}

#[test]
fn java_version() {
    if let Some(java) = java("java") {
        Case::new(java)
            .args(["-Xshare:auto", "-version"])
            .succeeds_as_native();
    }
}

#[test]
fn java_runs_a_jar() {
    let (Some(java), Some(javac)) = (java("java"), needs::host_program("javac")) else {
        return;
    };
    let Some(jar) = needs::host_program("jar") else {
        return;
    };
    let scratch = Scratch::new();
    scratch.write(
        "Main.java",
        "import java.util.*; import java.util.concurrent.*; import java.util.stream.*;
         public class Main { public static void main(String[] a) throws Exception {
             var pool = Executors.newFixedThreadPool(4); var parts = new ArrayList<Future<Long>>();
             for (int p = 0; p < 8; p++) { final int from = p * 100000;
                 parts.add(pool.submit(() -> LongStream.range(from, from + 100000).map(x -> x * x % 1009).sum())); }
             long sum = 0; for (var f : parts) sum += f.get(); pool.shutdown(); System.out.println(sum);
             var kept = new ArrayList<byte[]>(); for (int i = 0; i < 20000; i++) { var b = new byte[4096]; b[i % 4096] = 1;
                 if (i % 100 == 0) kept.add(b); } System.gc(); System.out.println(kept.size());
             try { Object o = null; o.toString(); } catch (NullPointerException e) { System.out.println(\"caught\"); }
             try { deep(0); } catch (StackOverflowError e) { System.out.println(\"overflow caught\"); }
             System.out.println(Arrays.toString(a)); System.err.println(\"to stderr\"); System.exit(a.length); }
           static int deep(int n) { return deep(n + 1) + 1; } }",
    );
    let run = |tool: &std::path::Path, arguments: &[&str]| {
        let done = Command::new(tool)
            .args(arguments)
            .current_dir(scratch.path())
            .output()
            .expect("the JDK runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    run(&javac, &["Main.java"]);
    run(&jar, &["cfe", "main.jar", "Main", "Main.class"]);
    let case = Case::new(java)
        .args(["-Xmx256m", "-XX:-UsePerfData", "-jar"])
        .arg(scratch.join("main.jar"));
    let outcome = case
        .args(["one", "two"])
        .volume(scratch.path())
        .memory("2G")
        .same_as_native();
    assert_eq!(
        outcome.status.shell_code(),
        2,
        "{}{}",
        outcome.text(),
        outcome.error_text()
    );
}
