//! `cloak ps`: running VMs that have a name.

use std::process::ExitCode;

use cloak_host::control::client;
use cloak_host::control::wire::{ContextInfo, Info};

/// List running VMs that have a name (cloak run --name)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Lists them.
pub fn run(args: &Args) -> ExitCode {
    match client::running() {
        Ok(all) => {
            if args.json {
                // Plain data: it can be written.
                println!("{}", serde_json::to_string_pretty(&all).unwrap_or_default());
            } else {
                print!("{}", table(&all));
            }
            ExitCode::SUCCESS
        }
        Err(error) => super::failed(&error),
    }
}

fn table(all: &[Info]) -> String {
    let mut rows = vec![["NAME", "PID", "UP", "CPUS", "MEMORY", "STATE", "COMMAND"].map(str::to_owned)];
    for vm in all {
        for context in &vm.contexts {
            let name = if vm.contexts.len() == 1 && context.name == vm.name {
                vm.name.clone()
            } else {
                format!("{}/{}", vm.name, context.name)
            };
            rows.push([
                name,
                vm.pid.to_string(),
                up(vm.seconds),
                context.cpus.to_string(),
                memory(context),
                if context.ended { "ended" } else { "running" }.to_owned(),
                context.command.chars().take(60).collect(),
            ]);
        }
    }
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..7).map(width).collect();
    let line = |row: &[String; 7]| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn memory(context: &ContextInfo) -> String {
    let whole = format!("{}M", context.memory >> 20);
    match context.resident {
        Some(most) => format!("{}M of {whole}", most >> 20),
        None => whole,
    }
}

fn up(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let context = |name: &str, ended| ContextInfo {
            name: name.to_owned(),
            command: "/bin/sh -c true".to_owned(),
            ended,
            cpus: 2,
            memory: 512 << 20,
            resident: ended.then_some(64 << 20),
            exec: true,
        };
        let vm = Info {
            name: "shop".to_owned(),
            pid: 7,
            seconds: 7300,
            contexts: vec![context("web", false), context("database", true)],
        };
        assert_eq!(
            table(&[vm]),
            "NAME           PID  UP  CPUS  MEMORY       STATE    COMMAND\n\
             shop/web       7    2h  2     512M         running  /bin/sh -c true\n\
             shop/database  7    2h  2     64M of 512M  ended    /bin/sh -c true\n"
        );
    }
}
