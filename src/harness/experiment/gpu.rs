//! GPUs and who uses them, as `nvidia-smi` tells it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::machine;

/// The program that is asked.
pub const PROGRAM: &str = "nvidia-smi";
/// How it is to answer.
const FORMAT: &str = "--format=csv,noheader,nounits";

/// One GPU. Memory in MiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its number.
    pub index: u32,
    /// Its name for ever.
    pub uuid: String,
    /// Its model.
    pub name: String,
    /// The driver's version.
    pub driver: String,
    /// Memory it has.
    pub total_mib: u64,
    /// Memory that nobody uses.
    pub free_mib: u64,
}

/// A process that computes on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// The GPU.
    pub uuid: String,
    /// Its id, as the driver knows it: inside a container that may be another.
    pub pid: u32,
    /// Its program.
    pub name: String,
    /// Memory it holds, in MiB, if the driver tells.
    pub used_mib: Option<u64>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpus {
    /// The GPUs.
    pub cards: Vec<Gpu>,
    /// Who computes there.
    pub tenants: Vec<Tenant>,
}

/// Asks `program`, which is [`PROGRAM`] unless a test has another.
///
/// # Errors
/// When it is not there or fails; the message says how.
pub async fn ask(program: &Path) -> anyhow::Result<Gpus> {
    let cards = [
        "--query-gpu=index,uuid,name,driver_version,memory.total,memory.free",
        FORMAT,
    ];
    let (cards, tenants) = tokio::join!(machine::output(program, &cards, None), tenants(program));
    Ok(Gpus {
        cards: cards?.lines().filter_map(card).collect(),
        tenants: tenants?,
    })
}

/// Asks `program` who computes.
///
/// # Errors
/// When it is not there or fails; the message says how.
pub async fn tenants(program: &Path) -> anyhow::Result<Vec<Tenant>> {
    let query = [
        "--query-compute-apps=gpu_uuid,pid,process_name,used_memory",
        FORMAT,
    ];
    let answer = machine::output(program, &query, None).await?;
    Ok(answer.lines().filter_map(tenant).collect())
}

fn card(line: &str) -> Option<Gpu> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [index, uuid, name, driver, total, free] = fields[..] else {
        return None;
    };
    Some(Gpu {
        index: index.parse().ok()?,
        uuid: uuid.to_owned(),
        name: name.to_owned(),
        driver: driver.to_owned(),
        total_mib: total.parse().ok()?,
        free_mib: free.parse().ok()?,
    })
}

fn tenant(line: &str) -> Option<Tenant> {
    let (uuid, rest) = line.split_once(',')?;
    let (pid, rest) = rest.split_once(',')?;
    // A program's name may have commas.
    let (name, used) = rest.rsplit_once(',')?;
    Some(Tenant {
        uuid: uuid.trim().to_owned(),
        pid: pid.trim().parse().ok()?,
        name: name.trim().to_owned(),
        used_mib: used.trim().parse().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_nvidia_smi_are_read_and_others_are_not() {
        let gpu = card("0, GPU-1f, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 81008").unwrap();
        assert_eq!(
            (gpu.index, gpu.total_mib, gpu.free_mib),
            (0, 81_559, 81_008)
        );
        assert_eq!(gpu.name, "NVIDIA H100 80GB HBM3");
        assert_eq!(card("No devices were found"), None);
        let holder = tenant("GPU-1f, 4711, /opt/a,b/python, 12 ").unwrap();
        assert_eq!((holder.pid, holder.used_mib), (4711, Some(12)));
        assert_eq!(holder.name, "/opt/a,b/python");
        let hidden = tenant("GPU-1f, 4711, [Not Found], [N/A]").unwrap();
        assert_eq!(hidden.used_mib, None);
        assert_eq!(tenant("No running processes found"), None);
    }
}
