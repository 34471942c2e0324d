// SPDX-License-Identifier: GPL-2.0

//! What happens when there is a device, when it is reset and comes back, and when it goes.

use core::pin::Pin;

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
    EPOCH_NONE,
    MAGIC, //
};

use crate::{
    bindings::{
        memory::{
            is_encrypted,
            total_pages, //
        },
        shrinker::Shrinker,
        sysfs,
        thread::Thread,
        work::OwnedQueue, //
    },
    client::{
        Pool,
        Wants, //
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
        VIRTIO_F_VERSION_1, //
    },
    window, //
};

/// More data virtqueues than this are of no use.
const MAX_DATA_QUEUES: u16 = 64;

/// The driver.
pub(crate) struct TmemDriver;

crate::virtio_device_table!(VIRTIO_TABLE, @none, [virtio::DeviceId::new(DEVICE_ID)]);

/// What there is for a device, in the order in which it is taken down.
pub(crate) struct TmemData<'bound> {
    _files: sysfs::Group<'bound, files::About>,
    _stats: Stats,
    _shrinker: Option<Shrinker<Client>>,
    hooks: Hooks,
    _pump: Thread<Client>,
    _works: Works,
    _attached: Attached,
    client: Arc<Client>,
    _window: Option<window::Lent>,
}

/// Waits, when there is nobody any more who has work done, until it has been.
struct Works([Arc<OwnedQueue>; 2]);

impl Drop for Works {
    fn drop(&mut self) {
        for queue in &self.0 {
            queue.flush();
        }
    }
}

/// Lets go of the device, unless that has happened.
struct Attached(Arc<Client>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.part();
    }
}

impl virtio::Driver for TmemDriver {
    type Data<'bound> = TmemData<'bound>;
    const ID_TABLE: virtio::IdTable = &VIRTIO_TABLE;

    fn probe<'bound>(
        vdev: &'bound virtio::Device<Core<'_>>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        bind(vdev)
    }

    fn unbind<'bound>(_vdev: &'bound virtio::Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        this.client.quiesce();
        this.hooks.empty();
        this.client.leave();
    }

    fn freeze<'bound>(
        _vdev: &'bound virtio::Device<Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        this.client.suspend()
    }

    fn restore<'bound>(
        vdev: &'bound virtio::Device<Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        Client::resume(&this.client, vdev)
    }

    fn shutdown<'bound>(_vdev: &'bound virtio::Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        this.client.shut_down();
    }
}

/// Sets up all that there is for a device.
///
/// What was set up is taken down if something later fails.
fn bind<'bound>(vdev: &'bound virtio::Device<Core<'_>>) -> Result<TmemData<'bound>> {
    if is_encrypted() {
        dev_err!(
            vdev,
            "the guest's memory is encrypted, and its pages would leave it as they are: not \
             supported\n"
        );
        return Err(EOPNOTSUPP);
    }
    let config = read_config(vdev)?;
    // Before anything is set up: there can be one.
    let seat = hooks::Seat::take().inspect_err(|_| {
        dev_err!(
            vdev,
            "another tmem device is in use, or swap pages of an earlier one are not \
             read back: only one is supported, and swapoff ends the latter\n"
        );
    })?;

    let capabilities = config.capabilities.get();
    let wants = Wants {
        frontswap: params::frontswap() && capabilities & cap::PERSISTENT != 0,
        cleancache: params::cleancache() && capabilities & cap::EPHEMERAL != 0,
    };
    let growth = Arc::new(OwnedQueue::new(c"virtio_tmem_grow", false)?, GFP_KERNEL)?;
    let urgent = Arc::new(OwnedQueue::new(c"virtio_tmem_life", true)?, GFP_KERNEL)?;
    let works = Works([growth.clone(), urgent.clone()]);
    let client = Client::new(
        &config,
        wants,
        &params::limits(wants, total_pages()),
        growth,
        urgent,
    )?;
    let pump = Thread::new(c"virtio_tmem", client.clone())?;

    let window = window::shared::lend(vdev);
    let attached = Attached(client.clone());
    Client::attach(&client, vdev)?;
    client.begin_pools()?;
    match client.open_window(false) {
        // Another epoch is taken over by the thread, as any is.
        Err(error) if error != ESTALE => return Err(error),
        _ => (),
    }
    client.begin_staging()?;

    let hooks = seat.install(&client, wants)?;
    let shrinker = if wants.cleancache {
        Some(Shrinker::new(c"virtio-tmem-staging", client.clone())?)
    } else {
        None
    };
    let stats = Stats::new(&client)?;
    let files = files::add(vdev.as_ref(), client.clone())?;

    client.run();
    dev_info!(
        vdev,
        "frontswap {}, cleancache {}, {} data virtqueues, room for {} pages\n",
        hooks.frontswap(),
        if hooks.cleancache() { "on" } else { "off" },
        config.data_queues.get(),
        client.credits(Pool::Frontswap),
    );
    Ok(TmemData {
        _files: files,
        _stats: stats,
        _shrinker: shrinker,
        hooks,
        _pump: pump,
        _works: works,
        _attached: attached,
        client,
        _window: window,
    })
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
    // What is not there reads as all ones.
    if config.epoch.get() == EPOCH_NONE || config.end != 0 {
        dev_err!(
            vdev,
            "the device's configuration space is too small: give it {} bytes (config_size={})\n",
            size_of::<Config>(),
            size_of::<Config>()
        );
        return Err(EINVAL);
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
