//! Where an engine can compute: the libraries that a process maps for it, and the devices that it holds then. Data.
//!
//! A library alone says nothing: a build for a GPU maps it on a machine without one, too, and computes on the CPU.

/// A way to compute elsewhere than on the CPU.
#[derive(Debug)]
pub struct Backend {
    /// What ggml calls it.
    pub name: &'static str,
    /// How the file name of ggml's own library for it begins.
    pub library: &'static str,
    /// How file names of what that needs begin: what is mapped by an executable that has ggml's library in itself.
    pub drivers: &'static [&'static str],
    /// How device files begin that a process which computes there has open, in lists that several share.
    pub devices: &'static [&'static [&'static str]],
}

/// What a process is said to compute on that holds no device.
pub const CPU: &str = "cpu";

/// Every one, those before that are meant where a process could compute on several.
pub static BACKENDS: &[Backend] = &[
    Backend {
        name: "cuda",
        library: "libggml-cuda",
        drivers: &["libcuda.so", "libcudart.so", "libcublas.so"],
        // `nvgpu` and `nvhost` are boards.
        devices: &[NVIDIA, &["/dev/nvgpu/", "/dev/nvhost-gpu", DXG]],
    },
    Backend {
        name: "hip",
        library: "libggml-hip",
        drivers: &["libamdhip64.so"],
        devices: &[&["/dev/kfd", DXG]],
    },
    Backend {
        name: "sycl",
        library: "libggml-sycl",
        drivers: &["libsycl.so", "libze_loader.so"],
        devices: &[RENDERERS, &[DXG]],
    },
    Backend {
        name: "cann",
        library: "libggml-cann",
        drivers: &["libascendcl.so"],
        devices: &[&["/dev/davinci"]],
    },
    Backend { name: "vulkan", library: "libggml-vulkan", drivers: &["libvulkan.so"], devices: ANY_GPU },
    Backend { name: "opencl", library: "libggml-opencl", drivers: &["libOpenCL.so"], devices: ANY_GPU },
];

/// The GPU of the host of a Linux that runs under Windows.
const DXG: &str = "/dev/dxg";
/// The cards, and not `/dev/nvidiactl`, which is also open where no card could be had.
const NVIDIA: &[&str] = &[
    "/dev/nvidia0",
    "/dev/nvidia1",
    "/dev/nvidia2",
    "/dev/nvidia3",
    "/dev/nvidia4",
    "/dev/nvidia5",
    "/dev/nvidia6",
    "/dev/nvidia7",
    "/dev/nvidia8",
    "/dev/nvidia9",
];
/// Cards of several makers, by the kernel's own drivers.
const RENDERERS: &[&str] = &["/dev/dri/renderD"];

/// What drivers of several makers open.
const ANY_GPU: &[&[&str]] = &[RENDERERS, NVIDIA, &["/dev/mali", "/dev/kgsl-3d", DXG]];

/// The backends that a process is built for, by the names of the files that it maps. Where it maps libraries of ggml only
/// these count: drivers map one another.
pub fn mapped(files: &[&str]) -> Vec<&'static Backend> {
    let begins = |begin: &str| files.iter().any(|file| file.starts_with(begin));
    let own: Vec<_> = BACKENDS.iter().filter(|backend| begins(backend.library)).collect();
    if !own.is_empty() {
        return own;
    }
    BACKENDS.iter().filter(|backend| backend.drivers.iter().any(|driver| begins(driver))).collect()
}

/// What a process computes on that is built for `backends` and has these device files open.
pub fn used(backends: &[&'static Backend], devices: &[String]) -> &'static str {
    let held = |backend: &Backend| {
        let mut begins = backend.devices.iter().copied().flatten();
        begins.any(|begin| devices.iter().any(|device| device.starts_with(begin)))
    };
    backends.iter().find(|backend| held(backend)).map_or(CPU, |backend| backend.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[&str]) -> Vec<&'static str> {
        mapped(files).iter().map(|backend| backend.name).collect()
    }

    #[test]
    fn a_backend_is_used_where_a_device_of_it_is_held() {
        let used_by = |files: &[&str], devices: &[&str]| {
            used(&mapped(files), &devices.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(
            used_by(&["libggml-cuda.so", "libggml-cpu-zen4.so"], &["/dev/nvidiactl", "/dev/nvidia0"]),
            "cuda"
        );
        assert_eq!(used_by(&["libggml-cuda.so"], &["/dev/nvidiactl"]), CPU, "the driver found no card");
        assert_eq!(used_by(&["libggml-vulkan.so.0"], &["/dev/null", "/dev/dri/renderD128"]), "vulkan");
        assert_eq!(used_by(&["libggml-vulkan.so"], &[]), CPU);
        assert_eq!(used_by(&["libggml-cuda.so", "libggml-vulkan.so"], &["/dev/dri/renderD128"]), "vulkan");
        assert_eq!(
            used_by(&["libggml-cpu.so"], &["/dev/nvidia0"]),
            CPU,
            "what it holds without a backend is not used"
        );
    }

    #[test]
    fn of_an_executable_that_has_all_in_itself_the_drivers_tell() {
        assert_eq!(names(&["llama-server", "libcuda.so.1", "libcublas.so.12"]), ["cuda"]);
        assert_eq!(names(&["libggml-vulkan.so", "libvulkan.so.1", "libcuda.so.1"]), ["vulkan"]);
        assert_eq!(names(&["llama-server", "libggml-cpu.so"]), [""; 0]);
    }
}
