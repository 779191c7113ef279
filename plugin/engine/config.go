package engine

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
)

// defaultTransports is the order in which ways to a disk are tried: encrypted network first, plain network last.
func defaultTransports() []string { return []string{"nbdssl", "nbd"} }

// knownTransports are all that a configuration may name. "vddk" is VMware's library with its own transports, which may
// be named: "vddk:san", "vddk:hotadd+nbdssl".
func knownTransports() []string { return []string{"nbdssl", "nbd", "hotadd", "vddk"} }

// chosenTransports is the order that a configuration leads to: who gives the library's directory wants it used first.
func chosenTransports(c plugin.Config) []string {
	switch {
	case len(c.Transports) > 0:
		return c.Transports
	case c.VDDKDir != "":
		return append([]string{"vddk"}, defaultTransports()...)
	}
	return defaultTransports()
}

// libraryModes are the transports of VMware's library, as it names them.
func libraryModes() []string { return []string{"san", "hotadd", "nbdssl", "nbd", "file"} }

// compressions are the levels of the repository, in restic's words.
func compressions() []string { return []string{"auto", "off", "fastest", "better", "max"} }

// diskCompressions are the ways to compress what travels between a host and here.
func diskCompressions() []string { return []string{"auto", "none", "zlib", "fastlz", "skipz"} }

const minPackSize, maxPackSize = 4, 128 // MiB, as restic has it

// Schema implements [plugin.Service].
func (e *Engine) Schema(context.Context) ([]plugin.Field, error) {
	return []plugin.Field{
		{Path: "vsphere.url", Type: "string", Doc: "vCenter or ESXi host, as https://vc.example/sdk"},
		{Path: "vsphere.username", Type: "string", Doc: "account; on a vCenter with its domain: backup@vsphere.local"},
		{Path: "vsphere.password", Type: "string", Doc: "password of the account", Sensitive: true},
		{Path: "vsphere.thumbprint", Type: "string", Doc: "SHA-1 or SHA-256 of the server's certificate, colon separated"},
		{Path: "vsphere.caCerts", Type: "string", Doc: "PEM file of certificate authorities to trust"},
		{Path: "vsphere.insecure", Type: "bool", Doc: "accept any certificate", Default: "false"},
		{Path: "repository.location", Type: "string", Doc: locationForms, Required: true},
		{Path: "repository.password", Type: "string", Doc: "password of the repository", Required: true, Sensitive: true},
		{Path: "repository.environment", Type: "map", Doc: "RESTIC_* and AWS_* variables for the storage service", Sensitive: true},
		{Path: "repository.options", Type: "map", Doc: "restic's extended options, for example s3.connections"},
		{Path: "repository.cacheDir", Type: "string", Doc: "directory for a cache of trees and indexes"},
		{Path: "repository.cacheSize", Type: "integer", Doc: "bytes that the cache may have, of all repositories in cacheDir together; what is in use stays", Default: "2 GiB"},
		{Path: "repository.compression", Type: "string", Doc: "how hard to compress; auto is fast where that costs little space", Values: compressions(), Default: "auto"},
		{Path: "repository.chunking", Type: "string", Doc: "how disks are cut into chunks", Values: chunkingNames(), Default: "as the newest point; without one, restic"},
		{Path: "repository.packSize", Type: "integer", Doc: "size of packs in MiB", Min: minPackSize, Max: maxPackSize, Default: "16"},
		{Path: "repository.limitUpload", Type: "integer", Doc: "KiB/s; 0: unlimited", Default: "0"},
		{Path: "repository.limitDownload", Type: "integer", Doc: "KiB/s; 0: unlimited", Default: "0"},
		{Path: "repository.lockWait", Type: "duration", Doc: "how long to wait for another's lock", Default: "0s"},
		{Path: "repository.noLock", Type: "boolean", Doc: "write nothing, not even a lock, to read from storage that cannot be written; a prune meanwhile looks like damage", Default: "false"},
		{Path: "stateDir", Type: "string", Doc: "journal of what is done to vSphere", Default: "the user's state directory"},
		{Path: "transports", Type: "list", Doc: "ways to reach disks, in order: " + strings.Join(knownTransports(), ", "), Default: strings.Join(defaultTransports(), ", ")},
		{Path: "vddkDir", Type: "string", Doc: "root of VMware's Virtual Disk Development Kit, for the transport vddk"},
		{Path: "vddkSettings", Type: "map", Doc: "settings of VMware's library, for example vixDiskLib.nfcAio.Session.BufCount"},
		{Path: "diskCompression", Type: "string", Doc: "of disks on their way from and to a host, over NFC and by VMware's library; auto is by measurement over NFC, and none by the library", Values: diskCompressions(), Default: "auto"},
		{Path: "limits.machines", Type: "integer", Doc: "machines backed up at once", Default: "4"},
		{Path: "limits.machinesPerHost", Type: "integer", Doc: "machines backed up at once on one ESXi host", Default: "2"},
		{Path: "limits.machinesPerDatastore", Type: "integer", Doc: "machines backed up at once on one datastore", Default: "4"},
		{Path: "limits.partsPerMachine", Type: "integer", Doc: "parts of a machine's disks read at once", Default: "number of CPUs + 1"},
		{Path: "limits.freeSpace", Type: "integer", Doc: "bytes a datastore must have free before a snapshot", Default: "5 % of its capacity"},
		{Path: "limits.snapshotTimeout", Type: "duration", Doc: "how long taking a snapshot may last", Default: "15m"},
	}, nil
}

// Validate implements [plugin.Service].
func (e *Engine) Validate(_ context.Context, c plugin.Config) ([]plugin.Diagnostic, error) {
	var out []plugin.Diagnostic
	bad := func(field, summary, remedy string) {
		out = append(out, plugin.Diagnostic{Severity: plugin.SeverityError, Code: plugin.CodeInvalid, Object: field, Summary: summary, Remedy: remedy})
	}
	if missing := noRepositoryIn(c); missing != nil {
		out = append(out, missing.Diagnostic())
	}
	if c.VSphere.URL != "" {
		u, err := url.Parse(c.VSphere.URL)
		switch {
		case err != nil:
			bad("vsphere.url", "the vSphere address is not a URL", "write it as https://vc.example/sdk") // err would show a password
		case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
			bad("vsphere.url", fmt.Sprintf("the vSphere address %q is not an https URL", u.Redacted()), "write it as https://vc.example/sdk")
		case c.VSphere.Username == "" && u.User == nil:
			bad("vsphere.username", "no vSphere account is named", "set vsphere.username, or GOVC_USERNAME")
		}
		if c.VSphere.CACerts != "" {
			for _, f := range filepath.SplitList(c.VSphere.CACerts) {
				if _, err := os.Stat(f); err != nil {
					bad("vsphere.caCerts", "the certificate file cannot be read: "+err.Error(), "give the path of a PEM file")
				}
			}
		}
	}
	for _, w := range []struct {
		field, what, value string
		allowed            []string
	}{
		{"repository.compression", "compression", c.Repository.Compression, compressions()},
		{"repository.chunking", "chunking", c.Repository.Chunking, chunkingNames()},
		{"diskCompression", "compression of disks", c.DiskCompression, diskCompressions()},
	} {
		if w.value != "" && !slices.Contains(w.allowed, w.value) {
			bad(w.field, fmt.Sprintf("unknown %s %q", w.what, w.value), "use "+oneOf(w.allowed))
		}
	}
	if err := vixdisklib.CheckSettings(c.VDDKSettings); err != nil {
		bad("vddkSettings", err.Error(), "write each as VMware's guide does: vixDiskLib.nfcAio.Session.BufCount=4")
	}
	if p := c.Repository.PackSize; p != 0 && (p < minPackSize || p > maxPackSize) {
		bad("repository.packSize", fmt.Sprintf("pack size of %d MiB", p), fmt.Sprintf("use %d to %d", minPackSize, maxPackSize))
	}
	for _, t := range c.Transports {
		name, modes, named := strings.Cut(t, ":")
		if !slices.Contains(knownTransports(), name) || named && name != "vddk" {
			bad("transports", fmt.Sprintf("unknown transport %q", t), "use "+strings.Join(knownTransports(), ", "))
			continue
		}
		for _, m := range strings.Split(modes, "+") {
			if named && !slices.Contains(libraryModes(), m) {
				bad("transports", fmt.Sprintf("VMware's library has no transport %q", m), "use "+strings.Join(libraryModes(), ", "))
			}
		}
		if name == "vddk" && c.VDDKDir == "" {
			bad("vddkDir", "the transport vddk needs VMware's library", "set vddkDir to its root, or leave vddk out of transports")
		}
	}
	for _, n := range []struct {
		field string
		value int64
	}{
		{"repository.cacheSize", c.Repository.CacheSize}, {"repository.limitUpload", int64(c.Repository.LimitUpload)}, {"repository.limitDownload", int64(c.Repository.LimitDownload)},
		{"repository.lockWait", int64(c.Repository.LockWait)}, {"limits.machines", int64(c.Limits.Machines)},
		{"limits.machinesPerHost", int64(c.Limits.MachinesPerHost)}, {"limits.machinesPerDatastore", int64(c.Limits.MachinesPerDatastore)},
		{"limits.partsPerMachine", int64(c.Limits.PartsPerMachine)}, {"limits.freeSpace", c.Limits.FreeSpace},
		{"limits.snapshotTimeout", int64(c.Limits.SnapshotTimeout)},
	} {
		if n.value < 0 {
			bad(n.field, fmt.Sprintf("%s is negative", n.field), "use 0 for the default")
		}
	}
	return out, nil
}

// oneOf lists what there is to choose from.
func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// noRepositoryIn says what a configuration lacks to reach a repository; nil when nothing. What concerns vSphere alone works
// without one.
func noRepositoryIn(c plugin.Config) *plugin.Error {
	switch {
	case c.Repository.Location == "":
		return &plugin.Error{Code: plugin.CodeNotConfigured, Object: "repository.location", Summary: "no repository is named", Remedy: "set repository.location, or RESTIC_REPOSITORY"}
	case c.Repository.Password == "":
		return &plugin.Error{Code: plugin.CodeNotConfigured, Object: "repository.password", Summary: "the repository has no password", Remedy: "set repository.password, RESTIC_PASSWORD or RESTIC_PASSWORD_FILE"}
	}
	return nil
}

// diskCompression is how disks' bytes are packed on the wire.
func diskCompression(c plugin.Config) (nfc.Compression, error) {
	if c.DiskCompression == "" {
		return nfc.Auto, nil
	}
	return nfc.ParseCompression(c.DiskCompression)
}

// libraryCompression is the same for VMware's library, which does not measure.
func libraryCompression(c nfc.Compression) vixdisklib.Compression {
	switch c {
	case nfc.Zlib:
		return vixdisklib.Zlib
	case nfc.FastLZ:
		return vixdisklib.FastLZ
	case nfc.Skipz:
		return vixdisklib.Skipz
	}
	return vixdisklib.Uncompressed
}

// stateDir is where the journal lies.
func stateDir(c plugin.Config) (string, error) {
	if c.StateDir != "" {
		return c.StateDir, nil
	}
	if d := os.Getenv("XDG_STATE_HOME"); d != "" {
		return filepath.Join(d, "vmkeep"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", &plugin.Error{Code: plugin.CodeInvalid, Summary: "no state directory", Detail: err.Error(), Remedy: "set stateDir"}
	}
	return filepath.Join(home, ".local", "state", "vmkeep"), nil
}
