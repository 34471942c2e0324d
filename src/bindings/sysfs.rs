// SPDX-License-Identifier: GPL-2.0

//! A driver's own files in the folder of its device in sysfs.

use core::{
    fmt::{
        self,
        Write, //
    },
    marker::PhantomData,
    slice, //
};

use kernel::{
    device::{
        Bound,
        Device, //
    },
    error::{
        from_result,
        to_result, //
    },
    faux,
    page::PAGE_SIZE,
    prelude::*, //
};

use super::raw;

/// A file of a [`Group`] about a `T`.
pub(crate) struct File<T: 'static> {
    /// The file's name.
    pub(crate) name: &'static CStr,
    /// Writes what the file says, which ends with a newline and is at most a page. Sleeps.
    pub(crate) show: Option<fn(&T, &mut Text<'_>) -> Result>,
    /// Takes what was written to the file, without the newline. Sleeps; whoever removes the file
    /// waits for it.
    pub(crate) store: Option<fn(&T, &str) -> Result>,
}

impl<T> File<T> {
    fn mode(&self) -> u16 {
        let show = if self.show.is_some() { 0o444 } else { 0 };
        let store = if self.store.is_some() { 0o200 } else { 0 };

        show | store
    }
}

/// What a file says.
pub(crate) struct Text<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len.checked_add(text.len()).ok_or(fmt::Error)?;
        let place = self.buffer.get_mut(self.len..end).ok_or(fmt::Error)?;

        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// One file, as the kernel knows it.
#[repr(C)]
struct Node<T: 'static> {
    /// The first field.
    attribute: raw::device_attribute,
    file: &'static File<T>,
    data: *const T,
}

/// A folder of files in that of a device, for as long as the instance lives.
///
/// # Invariants
///
/// `group` was added to `device`, and names the attributes of `nodes`, whose `data` is that of the
/// instance. None of them moves.
pub(crate) struct Group<'a, T: Send + Sync + 'static> {
    device: *mut raw::device,
    group: KBox<raw::attribute_group>,
    _attributes: KVec<*mut raw::attribute>,
    _nodes: KVec<Node<T>>,
    _data: KBox<T>,
    _bound: PhantomData<&'a Device<Bound>>,
}

// SAFETY: It can be removed from any thread, and the data can be sent and shared.
unsafe impl<T: Send + Sync> Send for Group<'_, T> {}
// SAFETY: Nothing can be done with a reference to it.
unsafe impl<T: Send + Sync> Sync for Group<'_, T> {}

impl<'a, T: Send + Sync + 'static> Group<'a, T> {
    /// Adds the folder `name` with `files` about `data` to that of a device.
    ///
    /// The files are there at once. May sleep.
    pub(crate) fn new(
        device: &'a Device<Bound>,
        name: &'static CStr,
        files: &'static [File<T>],
        data: T,
    ) -> Result<Self> {
        let data = KBox::new(data, GFP_KERNEL)?;
        let mut nodes = KVec::with_capacity(files.len(), GFP_KERNEL)?;
        let mut attributes = KVec::with_capacity(files.len() + 1, GFP_KERNEL)?;

        for file in files {
            let mut attribute = raw::device_attribute::default();

            // SAFETY: `attribute` may be written. The functions are called with the attribute as it is in
            // its node, and only while the group is there, which goes before the node does.
            unsafe {
                raw::tmem_device_attribute_init(
                    &raw mut attribute,
                    file.name.as_char_ptr(),
                    file.mode(),
                    Some(Self::show),
                    Some(Self::store),
                )
            };
            nodes.push(
                Node {
                    attribute,
                    file,
                    data: &raw const *data,
                },
                GFP_KERNEL,
            )?;
        }
        for node in nodes.iter_mut() {
            attributes.push(&raw mut node.attribute.attr, GFP_KERNEL)?;
        }
        attributes.push(core::ptr::null_mut(), GFP_KERNEL)?;

        let mut group = KBox::new(raw::attribute_group::default(), GFP_KERNEL)?;
        // CAST: `Device` is a transparent wrapper of `struct device`.
        let device = core::ptr::from_ref(device).cast_mut().cast::<raw::device>();
        group.name = name.as_char_ptr();
        group.__bindgen_anon_2.attrs = attributes.as_mut_ptr();

        // SAFETY: The device is bound, and so is in sysfs. The group, its list, which ends with null,
        // and the attributes are on the heap, and stay until the group is removed.
        to_result(unsafe { raw::sysfs_create_group(&raw mut (*device).kobj, &raw const *group) })?;
        // INVARIANT: It was just added, and what it consists of moves no more.
        Ok(Self {
            device,
            group,
            _attributes: attributes,
            _nodes: nodes,
            _data: data,
            _bound: PhantomData,
        })
    }

    /// # Safety
    ///
    /// `attribute` must be that of a node, which stays with its data until this returns; `buffer` must
    /// be a page that is nobody else's.
    unsafe extern "C" fn show(
        _device: *mut raw::device,
        attribute: *mut raw::device_attribute,
        buffer: *mut c_char,
    ) -> isize {
        // SAFETY: By the safety requirements, and as the attribute is the first field of the node.
        let (file, data) = unsafe {
            let node = &*attribute.cast::<Node<T>>();
            (node.file, &*node.data)
        };
        let Some(show) = file.show else {
            return EIO.to_errno() as isize;
        };
        let mut text = Text {
            // SAFETY: By the safety requirements it is a page; sysfs has zeroed it.
            buffer: unsafe { slice::from_raw_parts_mut(buffer.cast(), PAGE_SIZE) },
            len: 0,
        };

        // CAST: It is at most a page.
        from_result(|| show(data, &mut text).map(|()| text.len as isize))
    }

    /// # Safety
    ///
    /// `attribute` must be that of a node, which stays with its data until this returns; `buffer` must
    /// have `len` bytes, which nobody changes.
    unsafe extern "C" fn store(
        _device: *mut raw::device,
        attribute: *mut raw::device_attribute,
        buffer: *const c_char,
        len: usize,
    ) -> isize {
        // SAFETY: By the safety requirements, and as the attribute is the first field of the node.
        let (file, data) = unsafe {
            let node = &*attribute.cast::<Node<T>>();
            (node.file, &*node.data)
        };

        from_result(|| {
            let store = file.store.ok_or(EIO)?;
            // SAFETY: By the safety requirements there are so many bytes.
            let bytes = unsafe { slice::from_raw_parts(buffer.cast::<u8>(), len) };
            let text = core::str::from_utf8(bytes).map_err(|_| EINVAL)?;

            store(data, text.trim_end_matches('\n'))?;
            // CAST: It is at most a page.
            Ok(len as isize)
        })
    }
}

impl<T: Send + Sync> Drop for Group<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the group was added to the device, which is still bound, and
        // so still there. This waits for whoever reads or writes a file of it.
        unsafe { raw::sysfs_remove_group(&raw mut (*self.device).kobj, &raw const *self.group) };
    }
}

/// A folder of files that belongs to no device, but to the module: `/sys/devices/faux/MODULE/NAME/`.
///
/// # Invariants
///
/// `group` is in the folder of `_device`, which is dropped after it.
pub(crate) struct Folder<T: Send + Sync + 'static> {
    _group: Group<'static, T>,
    _device: KBox<faux::Registration>,
}

impl<T: Send + Sync + 'static> Folder<T> {
    /// Adds the folder `name` with `files` about `data` to that of the module.
    ///
    /// The files are there at once. May sleep.
    pub(crate) fn new(
        module: &CStr,
        name: &'static CStr,
        files: &'static [File<T>],
        data: T,
    ) -> Result<Self> {
        let registration = KBox::new(faux::Registration::new(module, None)?, GFP_KERNEL)?;
        let device: *const Device<Bound> = {
            let device: &faux::Device<Bound> = (*registration).as_ref();

            device.as_ref()
        };

        // SAFETY: The device is registered, and so bound, until the registration is dropped, which is
        // after the group, and nobody else is given the reference.
        let group = Group::new(unsafe { &*device }, name, files, data)?;
        // INVARIANT: As above.
        Ok(Self {
            _group: group,
            _device: registration,
        })
    }
}
