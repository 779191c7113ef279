package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

// options are everything that can be set for all commands.
type options struct {
	plugin.Config
	vspherePassword    secret
	repositoryPassword secret
	repositoryFile     string
	knownHosts         string // thumbprints by host, as govc keeps them
	noCache            bool
	plugin             string
	checksum           string
	noMTLS             bool
	quiesceRules       []plugin.QuiesceRule
	target             plugin.Target // defaults of restores, from GOVC_* variables
}

// secret says where a password comes from. The first that is set wins.
type secret struct{ value, file, command string }

// setting is one thing that can be set: in the configuration file by key, by a flag, by an environment variable, in
// descending order of precedence flag, file, variable. So what a file says is never changed by a variable that was
// meant for govc or restic.
type setting struct {
	key    string // in the file: "repository.location"; empty: not there
	flag   string // empty: none. Secrets have no flag: command lines are seen by all.
	short  string
	env    string
	kind   kind
	secret bool
	doc    string
	set    func(o *options, v []string) error // scalar: v[0]; pairs: "name=value" each
}

type kind int

const (
	scalar kind = iota
	boolean
	list
	pairs
)

// settings is the table of all settings.
func settings() []setting {
	return []setting{
		{key: "vsphere.url", flag: "url", env: "GOVC_URL", doc: "vCenter or ESXi host: https://vc.example/sdk, or just its name", set: func(o *options, v []string) error {
			u, err := vsphereURL(v[0])
			if err != nil {
				return err
			}
			o.VSphere.URL = u.String()
			if u.User != nil {
				o.VSphere.Username = u.User.Username()
				if p, ok := u.User.Password(); ok {
					o.vspherePassword.value = p
				}
				u.User = nil
				o.VSphere.URL = u.String()
			}
			return nil
		}},
		{key: "vsphere.username", flag: "user", env: "GOVC_USERNAME", doc: "user of vSphere", set: text(func(o *options) *string { return &o.VSphere.Username })},
		{key: "vsphere.password", env: "GOVC_PASSWORD", secret: true, doc: "password of vSphere", set: text(func(o *options) *string { return &o.vspherePassword.value })},
		{key: "vsphere.password-file", flag: "vsphere-password-file", doc: "file that holds the password of vSphere", set: text(func(o *options) *string { return &o.vspherePassword.file })},
		{key: "vsphere.password-command", doc: "command that prints the password of vSphere", set: text(func(o *options) *string { return &o.vspherePassword.command })},
		{key: "vsphere.thumbprint", flag: "thumbprint", doc: "SHA-1 or SHA-256 of vSphere's certificate", set: text(func(o *options) *string { return &o.VSphere.Thumbprint })},
		{key: "vsphere.known-hosts", env: "GOVC_TLS_KNOWN_HOSTS", doc: "file of thumbprints by host, as govc keeps it", set: text(func(o *options) *string { return &o.knownHosts })},
		{key: "vsphere.ca-certs", flag: "ca-certs", env: "GOVC_TLS_CA_CERTS", doc: "PEM file of certificates to trust for vSphere", set: text(func(o *options) *string { return &o.VSphere.CACerts })},
		{key: "vsphere.insecure", flag: "insecure", short: "k", env: "GOVC_INSECURE", kind: boolean, doc: "accept any certificate of vSphere", set: truth(func(o *options) *bool { return &o.VSphere.Insecure })},

		{key: "repository.location", flag: "repo", short: "r", env: "RESTIC_REPOSITORY", doc: "repository in restic's forms: /path, rest:, s3:, sftp:, rclone:", set: text(func(o *options) *string { return &o.Repository.Location })},
		{key: "repository.location-file", flag: "repository-file", env: "RESTIC_REPOSITORY_FILE", doc: "file that holds the repository's location", set: text(func(o *options) *string { return &o.repositoryFile })},
		{key: "repository.password", env: "RESTIC_PASSWORD", secret: true, doc: "password of the repository", set: text(func(o *options) *string { return &o.repositoryPassword.value })},
		{key: "repository.password-file", flag: "password-file", short: "p", env: "RESTIC_PASSWORD_FILE", doc: "file that holds the password of the repository", set: text(func(o *options) *string { return &o.repositoryPassword.file })},
		{key: "repository.password-command", flag: "password-command", env: "RESTIC_PASSWORD_COMMAND", doc: "command that prints the password of the repository", set: text(func(o *options) *string { return &o.repositoryPassword.command })},
		{key: "repository.environment", kind: pairs, secret: true, doc: "variables for the backend: AWS_ACCESS_KEY_ID, RESTIC_REST_USERNAME, ...", set: table(func(o *options) *map[string]string { return &o.Repository.Environment })},
		{key: "repository.options", flag: "option", short: "o", kind: pairs, doc: "restic's extended options: s3.connections=8, ...", set: table(func(o *options) *map[string]string { return &o.Repository.Options })},
		{key: "repository.cache-dir", flag: "cache-dir", env: "RESTIC_CACHE_DIR", doc: "directory of the cache", set: text(func(o *options) *string { return &o.Repository.CacheDir })},
		{key: "repository.cache-size", flag: "cache-size", doc: "size that the cache may have, of all repositories together: 500MiB; default 2GiB", set: func(o *options, v []string) (err error) {
			o.Repository.CacheSize, err = parseSize(v[0])
			return err
		}},
		{key: "repository.no-cache", flag: "no-cache", kind: boolean, doc: "do not use a cache", set: truth(func(o *options) *bool { return &o.noCache })},
		{key: "repository.compression", flag: "compression", env: "RESTIC_COMPRESSION", doc: "auto, off, fastest, better or max", set: text(func(o *options) *string { return &o.Repository.Compression })},
		{key: "repository.chunking", flag: "chunking", doc: "how disks are cut into chunks: restic, restic/2, restic/4 or fixed; default: as in the newest point", set: text(func(o *options) *string { return &o.Repository.Chunking })},
		{key: "repository.pack-size", flag: "pack-size", env: "RESTIC_PACK_SIZE", doc: "target size of packs in MiB", set: number(func(o *options) *int { return &o.Repository.PackSize })},
		{key: "repository.limit-upload", flag: "limit-upload", doc: "upload at most so many KiB/s", set: number(func(o *options) *int { return &o.Repository.LimitUpload })},
		{key: "repository.limit-download", flag: "limit-download", doc: "download at most so many KiB/s", set: number(func(o *options) *int { return &o.Repository.LimitDownload })},
		{key: "repository.lock-wait", flag: "retry-lock", doc: "wait so long for another's lock: 5m", set: span(func(o *options) *time.Duration { return &o.Repository.LockWait })},
		{key: "repository.no-lock", flag: "no-lock", kind: boolean, doc: "write nothing, not even a lock, to read from storage that cannot be written; a prune meanwhile looks like damage", set: truth(func(o *options) *bool { return &o.Repository.NoLock })},

		{key: "state-dir", flag: "state-dir", doc: "directory of the journal of what is to be undone", set: text(func(o *options) *string { return &o.StateDir })},
		{key: "transports", flag: "transport", kind: list, doc: "ways to reach disks, in order: nbdssl, nbd, hotadd, vddk", set: func(o *options, v []string) error {
			o.Transports = v
			return nil
		}},
		{key: "vddk-dir", flag: "vddk", doc: "root of VMware's Virtual Disk Development Kit", set: text(func(o *options) *string { return &o.VDDKDir })},
		{key: "vddk-settings", kind: pairs, doc: "settings of VMware's library: vixDiskLib.nfcAio.Session.BufCount=4, ...", set: table(func(o *options) *map[string]string { return &o.VDDKSettings })},
		{key: "disk-compression", flag: "disk-compression", doc: "of disks on their way from and to a host: auto, none, zlib, fastlz, skipz", set: text(func(o *options) *string { return &o.DiskCompression })},
		{key: "limits.machines", doc: "machines backed up at once", set: number(func(o *options) *int { return &o.Limits.Machines })},
		{key: "limits.machines-per-host", doc: "of these on one ESXi host", set: number(func(o *options) *int { return &o.Limits.MachinesPerHost })},
		{key: "limits.machines-per-datastore", doc: "of these on one datastore", set: number(func(o *options) *int { return &o.Limits.MachinesPerDatastore })},
		{key: "limits.parts-per-machine", doc: "parts of disks read at once", set: number(func(o *options) *int { return &o.Limits.PartsPerMachine })},
		{key: "limits.free-space", doc: "a datastore must have so much free before a snapshot: 20GiB", set: func(o *options, v []string) (err error) {
			o.Limits.FreeSpace, err = parseSize(v[0])
			return err
		}},
		{key: "limits.snapshot-timeout", doc: "how long vSphere may take to make a snapshot: 15m", set: span(func(o *options) *time.Duration { return &o.Limits.SnapshotTimeout })},
		{key: "quiesce", kind: pairs, doc: "how machines are quiesced, by name or glob, first match wins: best=app at-least=fs timeout=20m vss=full bootable partial", set: func(o *options, v []string) error {
			for _, pair := range v {
				machine, words, _ := strings.Cut(pair, "=")
				q, err := parseQuiesce(words)
				if err != nil {
					return fmt.Errorf("machine %s: %w", machine, err)
				}
				o.quiesceRules = append(o.quiesceRules, plugin.QuiesceRule{Machine: machine, Quiesce: q})
			}
			return nil
		}},

		{key: "plugin", flag: "plugin", env: "VMKEEP_PLUGIN", doc: "the program vmkeep-plugin; default: next to vmkeep, then on PATH", set: text(func(o *options) *string { return &o.plugin })},
		{key: "plugin-checksum", flag: "plugin-checksum", doc: "SHA-256 that the plugin must have", set: text(func(o *options) *string { return &o.checksum })},
		{key: "plugin-no-mtls", kind: boolean, doc: "do not encrypt the connection to the plugin", set: truth(func(o *options) *bool { return &o.noMTLS })},

		{env: "GOVC_DATASTORE", doc: "default of restore --datastore", set: text(func(o *options) *string { return &o.target.Datastore })},
		{env: "GOVC_RESOURCE_POOL", doc: "default of restore --resource-pool", set: text(func(o *options) *string { return &o.target.ResourcePool })},
		{env: "GOVC_HOST", doc: "default of restore --host", set: text(func(o *options) *string { return &o.target.Host })},
		{env: "GOVC_FOLDER", doc: "default of restore --folder", set: text(func(o *options) *string { return &o.target.Folder })},
	}
}

// parseQuiesce reads how machines are quiesced: words, in any order.
func parseQuiesce(words string) (q plugin.Quiesce, err error) {
	for word := range strings.FieldsSeq(words) {
		switch name, value, _ := strings.Cut(word, "="); name {
		case "best":
			q.Best = plugin.Consistency(value)
		case "at-least":
			q.Worst = plugin.Consistency(value)
		case "timeout":
			if q.Timeout, err = time.ParseDuration(value); err != nil {
				return q, fmt.Errorf("%q is not a duration like 90s, 15m or 2h", value)
			}
		case "vss":
			q.VSS.Backup = value
		case "bootable":
			q.VSS.Bootable = true
		case "partial":
			q.VSS.Partial = true
		default:
			return q, fmt.Errorf("%q is none of best=, at-least=, timeout=, vss=, bootable and partial", word)
		}
	}
	return q, nil
}

// The setters below make a setting of a place in options.

func text(at func(*options) *string) func(*options, []string) error {
	return func(o *options, v []string) error {
		*at(o) = v[0]
		return nil
	}
}

func truth(at func(*options) *bool) func(*options, []string) error {
	return func(o *options, v []string) error {
		b, err := strconv.ParseBool(v[0])
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", v[0])
		}
		*at(o) = b
		return nil
	}
}

func number(at func(*options) *int) func(*options, []string) error {
	return func(o *options, v []string) error {
		n, err := strconv.Atoi(v[0])
		if err != nil || n < 0 {
			return fmt.Errorf("%q is not a whole number", v[0])
		}
		*at(o) = n
		return nil
	}
}

func span(at func(*options) *time.Duration) func(*options, []string) error {
	return func(o *options, v []string) error {
		d, err := time.ParseDuration(v[0])
		if err != nil || d < 0 {
			return fmt.Errorf("%q is not a duration like 90s, 15m or 2h", v[0])
		}
		*at(o) = d
		return nil
	}
}

func table(at func(*options) *map[string]string) func(*options, []string) error {
	return func(o *options, v []string) error {
		m := make(map[string]string)
		for _, pair := range v {
			name, value, ok := strings.Cut(pair, "=")
			if !ok || name == "" {
				return fmt.Errorf("%q is not of the form name=value", pair)
			}
			m[name] = value
		}
		*at(o) = m
		return nil
	}
}
