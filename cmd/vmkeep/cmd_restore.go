package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmkeep/vmkeep/plugin"
)

func (a *app) restoreCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "restore POINT", Short: "Restore a machine, disks, or files of disks",
		Long: `Restore a point. POINT is an id, the beginning of one, or "latest" with --machine.

  --mode new        a new machine (the default)
  --mode in-place   over the disks of the existing machine, everything
  --mode rollback   over the disks of the existing machine, only what differs
  --mode attach     single disks, attached to a machine; one that runs goes on running, unless --power-off is given
  --to DIRECTORY    files here: raw, vmdk (split), flat, stream (streamOptimized), ova

--plan tells what would happen, and what cannot, without doing anything.
A restore that was interrupted goes on when it is run again: over existing disks and into files always, to a new machine
and to disks that are attached where --keep-partial was given. Such disks wait in a machine of their own, vmkeep-...; who
does not want them any more destroys it.`,
		Example: `  vmkeep restore latest --machine web1 --name web1-copy --network "VM Network=Lab" --plan
  vmkeep restore 1a2b3c4d --mode rollback --power-off --power-on
  vmkeep restore 1a2b3c4d --to /srv/out --format raw --disk scsi0-0`,
		Args: takes(1, 1)}
	var r plugin.RestoreRequest
	var mode, format string
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&r.Machine, "machine", "m", "", "machine of \"latest\": name or instanceUuid")
	f.StringVar(&mode, "mode", "", "new, in-place, rollback, attach or directory")
	f.StringVarP(&r.Directory, "to", "t", "", "directory to restore files into")
	f.StringVar(&format, "format", "", "with --to: raw, vmdk, flat, stream or ova (default raw)")
	f.BoolVar(&r.Sparse, "sparse", true, "with --to: leave holes in files")
	f.BoolVar(&r.Force, "force", false, "with --to: overwrite files that exist")
	f.StringSliceVar(&r.Disks, "disk", nil, "only these disks: scsi0-0, ...")
	f.StringVar(&r.Target.Name, "name", "", "name of the new machine")
	f.StringVar(&r.Target.Machine, "onto", "", "machine to write to: path, name or id; default: the point's own")
	f.StringVar(&r.Target.Folder, "folder", "", "folder of the new machine")
	f.StringVar(&r.Target.Host, "esxi", "", "ESXi host of the new machine")
	f.StringVar(&r.Target.Cluster, "cluster", "", "cluster of the new machine")
	f.StringVar(&r.Target.ResourcePool, "resource-pool", "", "resource pool of the new machine")
	f.StringVar(&r.Target.Datastore, "datastore", "", "datastore")
	f.StringToStringVar(&r.Target.Datastores, "disk-datastore", nil, "datastore of single disks: scsi0-1=ssd2")
	f.StringToStringVar(&r.Target.Networks, "network", nil, "network in the point = network here")
	f.BoolVar(&r.Target.NoNetworks, "no-networks", false, "leave cards whose network does not exist here disconnected")
	f.BoolVar(&r.Target.KeepIdentity, "keep-identity", false, "keep instanceUuid and biosUuid")
	f.BoolVar(&r.Target.KeepMAC, "keep-mac", false, "keep the MAC addresses")
	f.StringVar(&r.Target.Provisioning, "provisioning", "", "thin, thick or eager; default: as it was")
	f.StringToStringVar(&r.Target.Positions, "position", nil, "attach: place of a disk, scsi0-1=scsi1:3")
	f.BoolVar(&r.Verify, "verify", false, "read back what was written and compare")
	f.BoolVar(&r.PowerOff, "power-off", false, "power the machine off first, where that is needed")
	f.BoolVar(&r.PowerOn, "power-on", false, "power the machine on afterwards")
	f.BoolVar(&r.KeepPartial, "keep-partial", false, "after a failure keep the half-made machine, or the half-filled disks that are to be attached, for the same restore to go on with")
	f.BoolVar(&r.AllowMissing, "allow-missing", false, "go on where the repository lost data, and report where: new disks have zeros there, existing ones stay as they are")
	plan := f.BoolP("plan", "n", false, "only tell what would happen")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.Point, r.Mode, r.Format = args[0], plugin.RestoreMode(mode), plugin.RestoreFormat(format)
		if err := completeRestore(cmd, &r); err != nil {
			return err
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			inherit(&r, s.options.target)
			if *plan {
				p, err := s.PlanRestore(ctx, r)
				if err != nil {
					return err
				}
				return a.writePlan(p)
			}
			w := a.watch()
			began := time.Now()
			report, err := s.Restore(ctx, r, w.emit)
			w.finish()
			if err != nil {
				return err
			}
			a.writeRestore(report, time.Since(began))
			for _, d := range report.Disks {
				if len(d.Lost) > 0 {
					return partial{exitPartial}
				}
			}
			return nil
		})
	}
	return cmd
}

// completeRestore fills in what follows from what was said and refuses what contradicts it.
func completeRestore(cmd *cobra.Command, r *plugin.RestoreRequest) error {
	if r.Mode == "" {
		r.Mode = plugin.RestoreNew
		if r.Directory != "" {
			r.Mode = plugin.RestoreDirectory
		}
	}
	switch {
	case r.Mode == plugin.RestoreDirectory && r.Directory == "":
		return wrongUse(cmd, "no directory is given: --to DIRECTORY")
	case r.Mode != plugin.RestoreDirectory && r.Directory != "":
		return wrongUse(cmd, "--to contradicts --mode %s", r.Mode)
	case r.Mode != plugin.RestoreDirectory && r.Format != "":
		return wrongUse(cmd, "--format is for files: it needs --to DIRECTORY")
	case r.Mode == plugin.RestoreNew && r.Target.Machine != "":
		return wrongUse(cmd, "--onto is for an existing machine; the new machine's name is --name")
	case r.Mode != plugin.RestoreNew && r.Target.Name != "":
		return wrongUse(cmd, "--name is for a new machine; an existing one is --onto")
	}
	if r.Mode == plugin.RestoreDirectory && r.Format == "" {
		r.Format = plugin.FormatRaw
	}
	return nil
}

// inherit takes what was not said from govc's variables, where a new machine is to be placed.
func inherit(r *plugin.RestoreRequest, from plugin.Target) {
	if r.Mode != plugin.RestoreNew {
		return
	}
	for _, place := range []struct{ to, from *string }{{&r.Target.Datastore, &from.Datastore}, {&r.Target.Folder, &from.Folder}} {
		if *place.to == "" {
			*place.to = *place.from
		}
	}
	if r.Target.Host == "" && r.Target.Cluster == "" && r.Target.ResourcePool == "" {
		r.Target.Host, r.Target.ResourcePool = from.Host, from.ResourcePool
	}
}

func (a *app) writePlan(p plugin.RestorePlan) error {
	switch {
	case a.json:
		writeJSON(a.stdout, "plan", p)
	default:
		fmt.Fprintf(a.stdout, "point %s: %s, %s\n\n", short(p.Point.ID), p.Point.Machine, when(p.Point.Time))
		for i, step := range p.Steps {
			fmt.Fprintf(a.stdout, "%3d. %s\n", i+1, step)
		}
		if p.Write >= 0 {
			fmt.Fprintf(a.stdout, "\nto write: at most %s\n", size(p.Write))
		}
		for _, d := range append(append([]plugin.Diagnostic{}, p.Notes...), p.Problems...) {
			for _, line := range remark("", d) {
				fmt.Fprintln(a.stdout, line)
			}
		}
	}
	if len(p.Problems) > 0 {
		return partial{exitFailure}
	}
	return nil
}

func (a *app) writeRestore(r plugin.RestoreReport, took time.Duration) {
	if a.json {
		writeJSON(a.stdout, "summary", r)
		return
	}
	g := grid{head: []string{"DISK", ">SIZE", ">WRITTEN", "VERIFIED", "HOW"}}
	for _, d := range r.Disks {
		verified := "no"
		if d.Verified {
			verified = "yes"
		}
		g.add(d.Name, size(d.Capacity), size(d.Written), verified, d.Reason)
	}
	g.write(a.stdout)
	for _, d := range r.Disks {
		for _, lost := range d.Lost {
			fmt.Fprintf(a.stdout, "%s: lost: %s at offset %d\n", d.Name, size(lost.Len), lost.Off)
		}
	}
	for _, d := range r.Notes {
		for _, line := range remark("", d) {
			fmt.Fprintln(a.stdout, line)
		}
	}
	for _, path := range r.Files {
		fmt.Fprintln(a.stdout, path)
	}
	if r.Machine != "" {
		fmt.Fprintf(a.stdout, "\nmachine %s (%s)\n", r.Machine, r.MachineID)
	}
	fmt.Fprintf(a.stdout, "\nrestored point %s: wrote %s of %s in %s (%s)\n", short(r.Point), size(r.Stats.Written), size(r.Stats.Size), elapsed(took), rate(r.Stats.Size, took))
}

func (a *app) catCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "cat POINT DISK", Short: "Write bytes of a disk to standard output", Args: takes(2, 2),
		Long: `Write bytes of a point's disk to standard output. Runs of zeros become holes when standard output is a file.
With --json, standard output carries the frames as JSON lines without the data: offset, length, and whether they are zeros.`,
		Example: "  vmkeep cat 1a2b3c4d scsi0-0 > disk.raw\n  vmkeep cat latest scsi0-0 --machine web1 --length 512 | xxd"}
	r := plugin.ReadDiskRequest{}
	var offset, length string
	cmd.Flags().StringVarP(&r.Machine, "machine", "m", "", "machine of \"latest\": name or instanceUuid")
	cmd.Flags().StringVar(&offset, "offset", "", "begin here: bytes or 1GiB")
	cmd.Flags().StringVar(&length, "length", "", "so many bytes; default: to the end")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		r.Point, r.Disk = args[0], args[1]
		if r.Offset, err = optionalSize(offset); err == nil {
			r.Length, err = optionalSize(length)
		}
		if err != nil {
			return wrongUse(cmd, "%v", err)
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			if a.json {
				return s.ReadDisk(ctx, r, func(f plugin.Frame) error {
					writeJSON(a.stdout, "frame", frameLine{f.Offset, f.Length, f.Data == nil})
					return nil
				})
			}
			out := newHoles(a.stdout)
			if err := s.ReadDisk(ctx, r, out.frame); err != nil {
				return err
			}
			return out.close()
		})
	}
	return cmd
}

type frameLine struct {
	Offset, Length int64
	Zeros          bool
}

func optionalSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if n, err := strconv.ParseInt(s, 0, 64); err == nil && n >= 0 {
		return n, nil
	}
	return parseSize(s)
}

// holes writes frames to a stream; where that is a fresh regular file, zeros become holes.
type holes struct {
	w       io.Writer
	file    *os.File // nil: not seekable
	pending int64    // zeros not yet written
	zeros   []byte
}

func newHoles(w io.Writer) *holes {
	h := &holes{w: w, zeros: make([]byte, plugin.FrameSize)}
	f, ok := w.(*os.File)
	if !ok {
		return h
	}
	// Only at the end of a file do skipped bytes read as zeros, and only without O_APPEND does a seek hold.
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && !appends(f) {
		if at, err := f.Seek(0, io.SeekCurrent); err == nil && at == info.Size() {
			h.file = f
		}
	}
	return h
}

func (h *holes) frame(f plugin.Frame) error {
	if f.Data == nil {
		h.pending += f.Length
		return nil
	}
	if err := h.skip(); err != nil {
		return outputError(err)
	}
	_, err := h.w.Write(f.Data)
	return outputError(err)
}

// skip puts the pending zeros into the output.
func (h *holes) skip() error {
	n := h.pending
	h.pending = 0
	if h.file != nil && n > 0 {
		_, err := h.file.Seek(n, io.SeekCurrent)
		return err
	}
	for n > 0 {
		w, err := h.w.Write(h.zeros[:min(n, int64(len(h.zeros)))])
		if err != nil {
			return err
		}
		n -= int64(w)
	}
	return nil
}

// close writes what is pending; a file is on disk then.
func (h *holes) close() error {
	n := h.pending
	err := h.skip()
	if err == nil && h.file != nil && n > 0 {
		var at int64
		if at, err = h.file.Seek(0, io.SeekCurrent); err == nil {
			err = h.file.Truncate(at)
		}
	}
	if f, ok := h.w.(*os.File); ok && err == nil {
		if info, e := f.Stat(); e == nil && info.Mode().IsRegular() {
			err = f.Sync()
		}
	}
	return outputError(err)
}

func outputError(err error) error {
	if err == nil {
		return nil
	}
	return &plugin.Error{Code: plugin.CodeFile, Summary: "cannot write the output", Detail: err.Error(), Remedy: "make room, or write elsewhere", Err: err}
}
