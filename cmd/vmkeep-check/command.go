package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmkeep/vmkeep/cmd/internal/build"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/location"
)

// options are what was asked for.
type options struct {
	repository, repositoryFile    string
	passwordFile, passwordCommand string
	storeOptions                  []string
	caCerts                       []string
	clientCert                    string
	insecureTLS, insecureNoPass   bool
	limitDownload, limitUpload    int
	retryLock                     time.Duration
	noLock                        bool

	readData bool
	subset   string
	daily    int

	json, nagios, quiet bool
	maxAge              time.Duration
	proof               string

	result *result // of a check that was made
}

const longHelp = `vmkeep-check verifies that everything any snapshot of a restic repository needs is there,
and with --read-data, --read-data-subset or --daily that it is stored bit by bit as it was written.
Authentication codes, the hashes of all blobs and the pack's header cover every byte; only a pack's name, which is the hash
of the whole, is not computed once more: restic check does that.

Locations, variables and exit codes are restic's: RESTIC_REPOSITORY, RESTIC_REPOSITORY_FILE, RESTIC_PASSWORD,
RESTIC_PASSWORD_FILE, RESTIC_PASSWORD_COMMAND, RESTIC_CACERT, RESTIC_TLS_CLIENT_CERT, RESTIC_REST_USERNAME,
RESTIC_REST_PASSWORD, RESTIC_PROGRESS_FPS, AWS_ACCESS_KEY_ID and so on.

Exit codes:
  0    no errors
  1    errors in the repository, or the check could not be made
  10   there is no repository
  11   the repository is locked
  12   wrong password
  130  interrupted
With --nagios they are those of monitoring plugins: 0 OK, 1 WARNING, 2 CRITICAL (damage), 3 UNKNOWN.

With --json standard output carries JSON lines with a "message_type": "status" while the check runs, one "finding" for
each problem, and a "summary" at the end. A check that could not be made ends with "exit_error" on standard error.

--daily N reads one Nth of the packs, another part each day (UTC), so that N daily runs read everything. The part
follows from the date and each pack's ID; a missed day is made up for N days later. With --proof the record keeps when each
part was last read, and the report and --nagios warn when that is more than N days ago.`

const examples = `  vmkeep-check -r /srv/repo                                structure only
  vmkeep-check -r s3:https://host/bucket --daily 30        also a thirtieth of the data, everything in 30 days
  vmkeep-check -r rest:https://host/ --read-data --proof /var/lib/vmkeep/proof.json
  vmkeep-check -r /srv/repo --nagios --max-age 26h`

func (p *program) command(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:           "vmkeep-check",
		Short:         "verify a repository",
		Long:          longHelp,
		Example:       examples,
		Version:       build.Version() + " (" + build.Platform() + ")",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return p.check(cmd.Context(), o) },
	}
	cmd.SetOut(p.stdout)
	cmd.SetErr(p.stderr)
	cmd.CompletionOptions.DisableDefaultCmd = true
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&o.repository, "repo", "r", "", "repository `location` (default: RESTIC_REPOSITORY)")
	f.StringVar(&o.repositoryFile, "repository-file", "", "`file` with the location (default: RESTIC_REPOSITORY_FILE)")
	f.StringVarP(&o.passwordFile, "password-file", "p", "", "`file` with the password (default: RESTIC_PASSWORD_FILE)")
	f.StringVar(&o.passwordCommand, "password-command", "", "`command` that prints the password (default: RESTIC_PASSWORD_COMMAND)")
	f.BoolVar(&o.insecureNoPass, "insecure-no-password", false, "the password is empty")
	f.StringArrayVarP(&o.storeOptions, "option", "o", nil, "`key=value` for the store, such as s3.connections=10; may be repeated")
	f.StringSliceVar(&o.caCerts, "cacert", nil, "PEM `file` with CA certificates to trust (default: RESTIC_CACERT)")
	f.StringVar(&o.clientCert, "tls-client-cert", "", "PEM `file` with client certificate and key (default: RESTIC_TLS_CLIENT_CERT)")
	f.BoolVar(&o.insecureTLS, "insecure-tls", false, "trust any server")
	f.IntVar(&o.limitDownload, "limit-download", 0, "read at most `rate` KiB/s; 0 means no limit")
	f.IntVar(&o.limitUpload, "limit-upload", 0, "write at most `rate` KiB/s; 0 means no limit")
	f.DurationVar(&o.retryLock, "retry-lock", 0, "wait up to `duration` for a locked repository")
	f.BoolVar(&o.noLock, "no-lock", false, "write no lock, for stores that cannot be written: a prune meanwhile looks like damage")
	f.BoolVar(&o.readData, "read-data", false, "read and verify all data")
	f.StringVar(&o.subset, "read-data-subset", "", "read and verify a `part` of the data: n/t, x%, or a size such as 500M")
	f.IntVar(&o.daily, "daily", 0, "read and verify one part of `N` (1 to 256) of the data, another one each day")
	f.BoolVar(&o.json, "json", false, "print JSON lines")
	f.BoolVar(&o.nagios, "nagios", false, "print one line for Nagios or Icinga, and use their exit codes")
	f.DurationVar(&o.maxAge, "max-age", 0, "with --nagios: warn when the newest snapshot of a host is older than `duration`")
	f.StringVar(&o.proof, "proof", "", "write a record of what was verified to `file`, as JSON")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print errors only")
	cmd.MarkFlagsMutuallyExclusive("read-data", "read-data-subset", "daily")
	cmd.MarkFlagsMutuallyExclusive("json", "nagios")
	cmd.MarkFlagsMutuallyExclusive("no-lock", "retry-lock")
	return cmd
}

// choice is which packs to read, and in the words of the report why these.
func (o *options) choice(now time.Time) (repo.ReadData, string, error) {
	switch {
	case o.readData:
		return repo.ReadData{All: true}, "all", nil
	case o.subset != "":
		d, err := repo.ParseReadData(o.subset)
		if err != nil {
			return d, "", fmt.Errorf("--read-data-subset: %w", err)
		}
		return d, o.subset, nil
	case o.daily < 0 || o.daily > 256:
		return repo.ReadData{}, "", fmt.Errorf("--daily %d: N is 1 to 256", o.daily)
	case o.daily > 0:
		d := dailyPart(now, o.daily)
		return d, fmt.Sprintf("%d/%d", d.Part, d.Parts), nil
	}
	return repo.ReadData{}, "none", nil
}

// dailyPart counts days in UTC since 1970 around the parts, so that any n days in a row choose each part once.
func dailyPart(now time.Time, n int) repo.ReadData {
	day := now.Unix() / (24 * 60 * 60)
	return repo.ReadData{Part: int(day%int64(n)) + 1, Parts: n}
}

func (o *options) validate() error {
	if o.maxAge != 0 && !o.nagios {
		return errors.New("--max-age goes with --nagios")
	}
	if o.maxAge < 0 || o.retryLock < 0 {
		return errors.New("durations are positive")
	}
	return nil
}

// nagiosPatience is how long a store may be out of reach: monitoring gives its plugins a minute, as a rule, and asks
// again.
const nagiosPatience = 30 * time.Second

// settings gathers what the store needs.
func (p *program) settings(o *options) (location.Settings, error) {
	s := location.Settings{
		Options: map[string]string{}, CACerts: o.caCerts, InsecureTLS: o.insecureTLS, Upload: o.limitUpload, Download: o.limitDownload,
		Env: func(name string) (string, bool) {
			if name == "RESTIC_TLS_CLIENT_CERT" && o.clientCert != "" {
				return o.clientCert, true
			}
			if name == "RESTIC_CACERT" && len(o.caCerts) > 0 {
				return "", false // a flag replaces its variable
			}
			return p.env(name)
		},
	}
	for _, option := range o.storeOptions {
		key, value, ok := strings.Cut(option, "=")
		if !ok {
			return s, fmt.Errorf("-o %s: want key=value", key)
		}
		s.Options[key] = value
	}
	if o.nagios {
		s.Retry.Budget = nagiosPatience
	}
	if !o.quiet && !o.nagios && !o.json {
		s.Retry.Notify = func(what string, err error, pause time.Duration) {
			fmt.Fprintf(p.stderr, "vmkeep-check: %s: %v; next attempt in %s\n", what, err, pause.Round(time.Second))
		}
	}
	return s, nil
}

// check makes the check and tells its result in every way that was asked for.
func (p *program) check(ctx context.Context, o *options) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	data, chosen, err := o.choice(p.now())
	if err != nil {
		return err
	}
	res := &result{options: o, chosen: chosen, started: p.now()}
	err = p.examine(ctx, res, data)
	res.finished, res.err = p.now(), err
	if res.finished.Before(res.started) {
		res.finished = res.started // the clock was set back
	}
	if o.proof != "" {
		res.coverage = previousCoverage(o.proof, res.repository).note(res, data.Part, o.daily)
		err = errors.Join(err, writeProof(o.proof, res))
	}
	o.result = res
	if err != nil {
		return err
	}
	switch {
	case o.nagios: // told at the end, together with the exit code
	case o.json:
		p.writeSummary(res)
	default:
		p.writeReport(res)
	}
	if !res.report.OK() {
		return errDamaged
	}
	return nil
}

// examine opens the repository and checks it.
func (p *program) examine(ctx context.Context, res *result, data repo.ReadData) (err error) {
	o := res.options
	l, err := p.location(o)
	if err != nil {
		return err
	}
	res.location = l.String()
	settings, err := p.settings(o)
	if err != nil {
		return err
	}
	password, err := p.password(ctx, o)
	if err != nil {
		return err
	}
	store, err := location.Open(ctx, l, settings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	// No cache: a check that reads from it would not notice what the store has lost.
	r, err := repo.Open(ctx, store, repo.OpenOptions{Password: password})
	if err != nil {
		return fmt.Errorf("repository at %s: %w", l, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	res.repository = r.ID()
	progress := p.newProgress(o)
	defer progress.end()
	if o.noLock {
		ctx = repo.Unlocked(ctx, r)
	}
	return retryLocked(ctx, o.retryLock, func() error {
		if res.report, err = r.Check(ctx, repo.CheckOptions{ReadData: data, Progress: progress.tell}); err != nil {
			return err
		}
		if snapshots, err := r.Snapshots(ctx); err == nil {
			res.newest = newestByHost(snapshots)
		} else if res.report.OK() {
			return err // otherwise the report says it
		}
		return nil
	})
}

// retryLocked repeats try while others hold the repository, as often and as long as restic does.
func retryLocked(ctx context.Context, limit time.Duration, try func() error) error {
	start, pause := time.Now(), 5*time.Second
	for {
		err := try()
		var locked *repo.LockedError
		left := limit - time.Since(start)
		if !errors.As(err, &locked) || left <= 0 {
			return err
		}
		timer := time.NewTimer(min(pause, left))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		pause = min(2*pause, time.Minute)
	}
}

func (p *program) lookup(name string) string {
	v, _ := p.env(name)
	return v
}

// fps is how often progress is told, in times per second; restic's variable.
func (p *program) fps() float64 {
	const usual, most = 5, 60
	if f, err := strconv.ParseFloat(p.lookup("RESTIC_PROGRESS_FPS"), 64); err == nil && f > 0 {
		return min(f, most)
	}
	return usual
}
