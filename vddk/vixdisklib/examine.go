package vixdisklib

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/library"
)

// Finding is one thing the library needs.
type Finding struct {
	Name   string
	OK     bool
	Detail string // what is there
	Remedy string // what to do; empty when OK
}

// Examine looks at the distribution in dir, at what the library needs of this machine, and loads it in a helper
// process (program; empty: as for [Transport.Helper]). It logs in nowhere. Findings come in the order in which they
// should be mended. major is the version that was loaded, for [Fits]; 0: none was.
func Examine(ctx context.Context, dir, program string) (found []Finding, major int) {
	t := &Transport{Dir: dir, Helper: program}
	platform := Finding{Name: "platform", OK: runtime.GOOS == "linux" && runtime.GOARCH == "amd64", Detail: runtime.GOOS + "/" + runtime.GOARCH}
	if !platform.OK {
		platform.Remedy = "VMware's library is used on x86-64 Linux only; NFC needs no library"
	}
	layout, file := examineLayout(dir)
	out := []Finding{platform, layout}
	if file != "" {
		out = append(out, examineNeighbours(file), examinePlugin(file))
	}
	out = append(out,
		examinePath("SCSI disks of this machine", "/sys/class/scsi_disk", "load the kernel module sd_mod, and give a container this machine's /sys: the library ends its process without"),
		examinePath("table of mounts", "/etc/mtab", "link it: ln -s /proc/self/mounts /etc/mtab; the library ends its process without"))
	if helper, err := t.helperProgram(); err != nil {
		return append(out, Finding{Name: "helper program", Detail: err.Error(), Remedy: "install vmkeep-vddk beside vmkeep-plugin"}), 0
	} else {
		out = append(out, examinePath("helper program", helper, "install vmkeep-vddk beside vmkeep-plugin"))
	}
	if platform.OK && layout.OK {
		loading, major := t.examineLoading(ctx)
		return append(out, loading...), major
	}
	return out, 0
}

// Fits judges whether a library of a major version is for a vSphere of a version, for example "8.0.3": VMware supports the
// two versions before its own, 6.5 and 6.7 counting apart, and the one after it (VDDK release notes, "Compatibility").
func Fits(major int, vsphere string) Finding {
	f := Finding{Name: "vSphere", OK: true, Detail: fmt.Sprintf("version %d for vSphere %s", major, vsphere)}
	var of, minor int
	if _, err := fmt.Sscanf(vsphere, "%d.%d", &of, &minor); err != nil {
		f.Detail += ": whether it fits is not known"
		return f
	}
	oldest := map[int]int{6: 600, 7: 605, 8: 607, 9: 700}[major] // hundreds are the major version
	switch at := of*100 + minor; {
	case at < oldest:
		f.OK, f.Remedy = false, fmt.Sprintf("take an older VDDK: this one is for vSphere %d.%d and later, and fails at the first read or earlier", oldest/100, oldest%100)
	case of > major+1:
		f.OK, f.Remedy = false, fmt.Sprintf("take a newer VDDK: this one is for vSphere up to %d", major+1)
	}
	return f
}

func examinePath(name, path, remedy string) Finding {
	f, err := os.Open(path)
	if err != nil {
		return Finding{Name: name, Detail: err.Error(), Remedy: remedy}
	}
	defer f.Close()
	return Finding{Name: name, OK: true, Detail: path}
}

// examineLayout finds the library's file.
func examineLayout(dir string) (_ Finding, file string) {
	f := Finding{Name: "directory", Detail: dir, Remedy: "give the directory vmware-vix-disklib-distrib of an unpacked VDDK, the one that contains lib64; VMware's licence does not let vmkeep bring it"}
	if files := library.Find(dir); len(files) > 0 {
		real, err := filepath.EvalSymlinks(files[0])
		if err != nil {
			f.Detail, f.Remedy = err.Error(), "unpack VDDK on a file system that has symbolic links"
			return f, ""
		}
		if info, err := os.Stat(real); err != nil || info.Size() == 0 {
			f.Detail, f.Remedy = real+" is empty", "the link was lost when VDDK was unpacked: unpack it on a file system that has symbolic links"
			return f, ""
		}
		if clean := filepath.Clean(dir); filepath.Dir(files[0]) == clean {
			f.Detail, f.Remedy = files[0]+" is not below lib64", "the library looks for its plug-ins in lib64 below the directory it is given: keep what VDDK was unpacked as"
			if filepath.Base(clean) == "lib64" {
				f.Remedy = "give the directory above: " + filepath.Dir(clean)
			}
			return f, files[0]
		}
		return Finding{Name: f.Name, OK: true, Detail: real}, files[0]
	}
	if _, err := os.Stat(dir); err != nil {
		f.Detail = err.Error()
		return f, ""
	}
	// The usual mistakes: one level too high or too deep.
	if m, _ := filepath.Glob(filepath.Join(escape(dir), "*", "lib64", "libvixDiskLib.so*")); len(m) > 0 {
		f.Detail, f.Remedy = "no library in "+dir, "give "+filepath.Dir(filepath.Dir(m[0]))
	} else if m, _ := filepath.Glob(filepath.Join(escape(dir), "lib64", "libvixDiskLib.so*")); len(m) > 0 {
		f.Detail = fmt.Sprintf("%s is there, and none of libvixDiskLib.so.%d to .%d", filepath.Base(m[0]), library.Oldest, library.Newest)
		f.Remedy = "the link that names the version was lost when VDDK was unpacked: make it, for example ln -s " + filepath.Base(m[0]) + " libvixDiskLib.so.8"
	}
	return f, ""
}

// escape keeps a directory's own characters from being a pattern.
func escape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(dir)
}

// examineNeighbours looks whether the libraries that file names can be found, as the loader will.
func examineNeighbours(file string) Finding {
	f := Finding{Name: "libraries it needs"}
	x, err := elf.Open(file)
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "the file is damaged: unpack VDDK again"
		return f
	}
	defer x.Close()
	if x.Machine != elf.EM_X86_64 {
		f.Detail, f.Remedy = "built for "+x.Machine.String(), "take VDDK for x86-64 Linux"
		return f
	}
	needed, err := x.ImportedLibraries()
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "the file is damaged: unpack VDDK again"
		return f
	}
	system := []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"}
	var missing []string
	for _, n := range needed {
		if !slices.ContainsFunc(append([]string{filepath.Dir(file)}, system...), func(d string) bool {
			_, err := os.Stat(filepath.Join(d, n))
			return err == nil
		}) {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		f.Detail, f.Remedy = "missing: "+strings.Join(missing, ", "), "unpack the whole of VDDK into "+filepath.Dir(filepath.Dir(file))+"; what is not VMware's comes from the distribution (glibc)"
		return f
	}
	f.OK, f.Detail = true, strings.Join(needed, ", ")
	return f
}

// examinePlugin looks for what serves nbdssl, nbd, hotadd and san.
func examinePlugin(file string) Finding {
	p := filepath.Join(filepath.Dir(file), "libdiskLibPlugin.so")
	return examinePath("advanced transports", p, "unpack the whole of VDDK: without libdiskLibPlugin.so the library serves local files only")
}

// examineLoading loads and initialises the library where it can do no harm.
func (t *Transport) examineLoading(ctx context.Context) (found []Finding, major int) {
	loading := Finding{Name: "loading", Remedy: "see the library's words above; a version older than 6.7 may not load on this system, take a newer one"}
	var said []string
	t.Log = func(level Level, text string) {
		if level != Info && len(said) < 5 {
			said = append(said, text)
		}
	}
	temp, err := os.MkdirTemp("", "vmkeep-vddk")
	if err != nil {
		loading.Detail, loading.Remedy = err.Error(), "make room for temporary files"
		return []Finding{loading}, 0
	}
	defer os.RemoveAll(temp) // the library keeps nothing there that outlives this
	t.TempDir = temp
	p, err := t.launch(ctx, newRedactor(), nil)
	if err != nil {
		// launch waited for the process: nothing is said any more.
		loading.Detail = strings.Join(append([]string{err.Error()}, said...), "; ")
		return []Finding{loading}, 0
	}
	modes := Finding{Name: "modes", OK: true, Detail: strings.ReplaceAll(p.loaded.Modes, ":", ", ")}
	if !strings.Contains(p.loaded.Modes, "nbd") {
		modes.OK, modes.Remedy = false, "the library found none of its network transports: its directory is incomplete or nested wrongly"
	}
	loading.OK, loading.Remedy = true, ""
	loading.Detail = fmt.Sprintf("version %d, %s", p.loaded.Major, p.libraryName())
	if !p.loaded.Allocation {
		loading.Detail += ", cannot tell allocated blocks"
	}
	if err := p.end(t.grace(ctx)); err != nil {
		loading.OK, loading.Detail, loading.Remedy = false, err.Error(), "the library does not end in order: take another version"
	}
	return []Finding{loading, modes}, p.loaded.Major
}
