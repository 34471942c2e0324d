// SPDX-License-Identifier: GPL-2.0

//! What happens when there is a device, and when there is none any more.

use kernel::{
    device::{
        Bound,
        Core, //
    },
    prelude::*,
    sync::Arc, //
};
use virtio_tmem_abi::{
    cap,
    Config,
    ABI_MAJOR,
    ABI_MINOR,
    DEVICE_ID,
    FIRST_DATA_QUEUE,
    MAGIC, //
};

use crate::{
    bindings::{
        sysfs,
        thread::Thread,
        work::OwnedQueue, //
    },
    client::{
        Lanes,
        Pool, //
    },
    files,
    hooks::{
        self,
        Client,
        Hooks, //
    },
    params,
    stats::Stats,
    virtio::{
        self,
        queue::{
            Owner,
            Queues, //
        },
    },
};

/// More data virtqueues than this are of no use.
const MAX_DATA_QUEUES: u16 = 64;

const VIRTIO_F_VERSION_1: u32 = 32;

/// The driver.
pub(crate) struct TmemDriver;

crate::virtio_device_table!(VIRTIO_TABLE, @none, [virtio::DeviceId::new(DEVICE_ID)]);

/// What there is for a device, in the order in which it is taken down.
pub(crate) struct TmemData<'bound> {
    _files: sysfs::Group<'bound, files::About>,
    _stats: Stats,
    _hooks: Hooks,
    _pump: Thread<Client>,
    _growth: Growth,
    _queues: Owner<Client>,
    client: Arc<Client>,
}

/// Waits, when there is nobody any more who has the index grow, until it has grown.
struct Growth(Arc<OwnedQueue>);

impl Drop for Growth {
    fn drop(&mut self) {
        self.0.flush();
    }
}

impl virtio::Driver for TmemDriver {
    type Data<'bound> = TmemData<'bound>;
    type Handler = Client;
    const ID_TABLE: virtio::IdTable = &VIRTIO_TABLE;

    fn probe<'bound>(
        vdev: &'bound virtio::Device<Core<'_>>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        bind(vdev)
    }

    fn unbind<'bound>(vdev: &'bound virtio::Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        this.client.quiesce();
        let lost = this
            .client
            .pages(Pool::Frontswap)
            .load(kernel::sync::atomic::Relaxed);
        if this.client.give_up() && lost > 0 {
            dev_err!(
                vdev,
                "the device goes with {lost} swap pages that only the host has: reading one is \
                 an I/O error\n"
            );
        }
    }
}

/// Sets up all that there is for a device.
///
/// What was set up is taken down if something later fails.
fn bind<'bound>(vdev: &'bound virtio::Device<Core<'_>>) -> Result<TmemData<'bound>> {
    let config = read_config(vdev)?;
    // Before anything is set up: there can be one.
    let seat = hooks::Seat::take().inspect_err(|_| {
        dev_err!(
            vdev,
            "another tmem device is in use, or swap pages of an earlier one are not \
             read back: only one is supported, and swapoff ends the latter\n"
        );
    })?;

    let count = usize::from(FIRST_DATA_QUEUE) + usize::from(config.data_queues.get());
    let lanes = Lanes::new(config.data_queues.get().into());
    let queues = Queues::find(vdev, count, |n| lanes.interrupts(n)).inspect_err(|error| {
        dev_err!(
            vdev,
            "the device does not have the {count} virtqueues that its configuration \
             promises ({error:?})\n"
        );
    })?;

    let growth = Arc::new(OwnedQueue::new(c"virtio_tmem_grow", false)?, GFP_KERNEL)?;
    let client = Client::new(
        queues.queues().clone(),
        growth.clone(),
        &config,
        &params::limits(hooks::total_pages()),
        crate::this_module(),
    )?;
    let pump = Thread::new(c"virtio_tmem", client.clone())?;

    queues.queues().start(client.clone());
    client.listen()?;
    let capabilities = config.capabilities.get();
    for (pool, bit, wanted) in [
        (Pool::Frontswap, cap::PERSISTENT, params::frontswap()),
        (Pool::Cleancache, cap::EPHEMERAL, params::cleancache()),
    ] {
        if wanted && capabilities & bit != 0 {
            client.create_pool(pool)?;
        }
    }

    let hooks = seat.install(
        &client,
        params::frontswap() && capabilities & cap::PERSISTENT != 0,
        params::cleancache() && capabilities & cap::EPHEMERAL != 0,
    )?;
    let stats = Stats::new(&client)?;
    let files = files::add(vdev.as_ref())?;

    client.run();
    dev_info!(
        vdev,
        "frontswap {}, cleancache {}, {} data virtqueues, room for {} pages\n",
        on_off(hooks.frontswap()),
        on_off(hooks.cleancache()),
        config.data_queues.get(),
        client.credits(Pool::Frontswap),
    );
    Ok(TmemData {
        _files: files,
        _stats: stats,
        _hooks: hooks,
        _pump: pump,
        _growth: Growth(growth),
        _queues: queues,
        client,
    })
}

fn on_off(on: bool) -> &'static str {
    if on {
        "on"
    } else {
        "off"
    }
}

/// Reads the configuration, and refuses one that is not a tmem device's, or not sound.
fn read_config(vdev: &virtio::Device<Bound>) -> Result<Config> {
    if !vdev.has_feature(VIRTIO_F_VERSION_1) {
        dev_err!(vdev, "a legacy virtio device is not supported\n");
        return Err(ENODEV);
    }

    let config = vdev.read_config::<Config>();
    let magic = config.magic.get();
    if magic != MAGIC {
        // Other devices may have the ID too.
        dev_info!(
            vdev,
            "not a tmem device: its magic is {magic:#x}, not {MAGIC:#x}\n"
        );
        return Err(ENODEV);
    }

    let major = config.abi_major.get();
    if major != ABI_MAJOR {
        dev_err!(
            vdev,
            "the host speaks version {major}.{} of the ABI and this driver {ABI_MAJOR}.{ABI_MINOR}: \
             update the older one\n",
            config.abi_minor.get()
        );
        return Err(EPROTONOSUPPORT);
    }

    let sound = [
        (
            usize::from(config.page_shift) == kernel::page::PAGE_SHIFT,
            "page size",
        ),
        (
            (1..=MAX_DATA_QUEUES).contains(&config.data_queues.get()),
            "number of data virtqueues",
        ),
        (config.max_pages.get() >= 1, "most pages of a request"),
        (config.max_flushes.get() >= 1, "most flushes of a request"),
        (config.max_pools.get() >= 2, "most pools"),
        (
            config.capabilities.get() & (cap::PERSISTENT | cap::EPHEMERAL) != 0,
            "capabilities",
        ),
    ];
    for (sound, what) in sound {
        if !sound {
            dev_err!(
                vdev,
                "the host offers a {what} that the guest cannot use: {config:?}\n"
            );
            return Err(EINVAL);
        }
    }
    Ok(config)
}
