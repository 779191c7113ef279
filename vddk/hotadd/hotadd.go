// Package hotadd reads disks of other machines as block devices, where this program itself runs in a machine of the
// same vCenter: vSphere attaches the disk to that machine, the proxy.
//
// It hides which device the disk became, and that an open disk lives inside a closure: attaching and detaching belong to an
// [Attacher], which the caller gives and which promises that what was attached is detached whatever happens. This
// package knows Linux, not vSphere.
//
// Vocabulary: the proxy is the machine this program runs in; a device is a SCSI disk as Linux names it (sdb); the unit is
// its number on its controller, which Linux calls target.
package hotadd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
)

// Attachment is a disk to attach to the proxy.
type Attachment struct {
	Path  string // datastore path
	Write bool   // what is written must stay; without it the disk is attached independent and nonpersistent
}

// Attached is a disk while it is attached to the proxy.
type Attached struct {
	UUID     string // of the virtual disk, as vSphere tells it; empty: not known
	Unit     int    // on its SCSI controller
	Capacity int64  // bytes
}

// Attacher attaches disks to the proxy.
type Attacher interface {
	// WithAttached attaches a disk, runs fn, and detaches the disk, also when fn failed or ctx ended. It refuses with
	// errors of package vddk: [vddk.ErrUnsupported] what it cannot attach, [vddk.ErrNotFound] what is not there.
	WithAttached(ctx context.Context, a Attachment, fn func(context.Context, Attached) error) error
}

// Transport opens disks by attaching them.
type Transport struct {
	Attacher Attacher
	Sys      string        // root of sysfs; empty: /sys
	Dev      string        // directory of devices; empty: /dev
	Settle   time.Duration // how long a device may take to appear; 0: 30 seconds

	// wrap is what a test puts between this package and a device; nil: nothing.
	wrap func(device) device
}

// Name is "hotadd".
func (t *Transport) Name() string { return "hotadd" }

func (t *Transport) sys() string { return orText(t.Sys, "/sys") }
func (t *Transport) dev() string { return orText(t.Dev, "/dev") }

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// Open attaches the disk and opens its device. The disk is detached by Close.
func (t *Transport) Open(ctx context.Context, spec vddk.Spec) (vddk.Disk, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	before, err := t.devices()
	if err != nil {
		return nil, fmt.Errorf("hotadd needs the block devices of a Linux machine: %w: %w", err, vddk.ErrUnsupported)
	}
	known := map[string]bool{}
	for _, d := range before {
		known[d] = true
	}
	d := &disk{ctx: ctx, spec: spec, release: make(chan struct{}), done: make(chan error, 1)}
	opened := make(chan struct{})
	go func() {
		d.done <- t.Attacher.WithAttached(ctx, Attachment{spec.Path, spec.Write}, func(ctx context.Context, a Attached) error {
			name, err := t.find(ctx, a, known)
			if err != nil {
				return err
			}
			f, err := t.open(name, spec.Write)
			if err != nil {
				return errors.Join(fmt.Errorf("open the device %s: %w", name, err), t.forget(name))
			}
			d.dev, d.name, d.size = f, name, a.Capacity
			close(opened)
			<-d.release
			// The kernel lets go of the device before vSphere takes it away.
			return errors.Join(f.Close(), t.forget(name))
		})
	}()
	select {
	case <-opened:
		return d, nil
	case err := <-d.done:
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		if err == nil {
			err = vddk.ErrUnsupported // an Attacher that runs nothing
		}
		return nil, fmt.Errorf("open %s by hotadd: %w", spec, err)
	}
}
