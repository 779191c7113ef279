package location

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/backend/rclone"
	"github.com/vmkeep/vmkeep/repo/backend/rest"
	"github.com/vmkeep/vmkeep/repo/backend/s3"
	"github.com/vmkeep/vmkeep/repo/backend/sftp"
)

// Settings are what a location needs beside its text.
type Settings struct {
	// Env looks up environment variables; nil means the process's own.
	Env func(name string) (value string, ok bool)
	// Options are restic's -o, such as "s3.connections": "10". Those of other stores are ignored.
	Options map[string]string
	// CACerts are PEM files with the only authorities to trust, before those in RESTIC_CACERT. InsecureTLS trusts
	// everybody.
	CACerts     []string
	InsecureTLS bool
	// Upload and Download are bounds in KiB per second; 0 means none.
	Upload, Download int
	// Retry is how long to insist.
	Retry backend.Policy
	// Observe, if any, is told of every operation that reached the store, retries one by one.
	Observe func(backend.Call)
}

// optionsOf are the options that a kind of store understands.
func optionsOf(scheme string) []string {
	switch scheme {
	case "local":
		return []string{"local.connections"}
	case "rest":
		return []string{"rest.connections"}
	case "s3":
		return []string{"s3.connections", "s3.storage-class", "s3.region", "s3.bucket-lookup", "s3.list-objects-v1", "s3.unsafe-anonymous-auth"}
	case "sftp":
		return []string{"sftp.connections", "sftp.command", "sftp.args"}
	case "rclone":
		return []string{"rclone.connections", "rclone.program", "rclone.args"}
	}
	return nil
}

// Open gives the backend of an existing repository, ready for use: it retries, keeps to its number of
// connections and to the rates. Nothing is written. Whether there is a repository shows when its config is
// loaded, at the latest: a missing directory or bucket is [backend.ErrNotExist] at once.
func Open(ctx context.Context, l Location, s Settings) (backend.Backend, error) {
	return open(ctx, l, s, existing)
}

// Create makes directories, bucket or prefix for a new repository, and gives the backend. What exists is left
// as it is; saving a config where there is one fails.
func Create(ctx context.Context, l Location, s Settings) (backend.Backend, error) {
	return open(ctx, l, s, fresh)
}

type purpose int

const (
	existing purpose = iota
	fresh
)

func open(ctx context.Context, l Location, s Settings, why purpose) (backend.Backend, error) {
	if s.Env == nil {
		s.Env = os.LookupEnv
	}
	o := opener{l: l, s: s, why: why, up: backend.NewThrottle(s.Upload), down: backend.NewThrottle(s.Download)}
	if err := o.checkOptions(); err != nil {
		return nil, err
	}
	var b backend.Backend
	err := s.Retry.Do(ctx, "open "+l.String(), func() (err error) {
		b, err = o.store(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("repository at %s: %w", l, err)
	}
	if s.Observe != nil {
		b = backend.Observe(b, s.Observe)
	}
	return backend.Retry(backend.Limit(b, 0), s.Retry), nil
}

type opener struct {
	l        Location
	s        Settings
	why      purpose
	up, down *backend.Throttle
}

func (o opener) checkOptions() error {
	for _, name := range slices.Sorted(maps.Keys(o.s.Options)) {
		kind, _, _ := strings.Cut(name, ".")
		if !slices.Contains(optionsOf(kind), name) {
			return backend.Permanent(fmt.Errorf("option %q is unknown; %s: has %s", name, o.l.scheme, strings.Join(optionsOf(o.l.scheme), ", ")))
		}
	}
	return nil
}

func (o opener) env(name string) string {
	if v, ok := o.s.Env(name); ok {
		return v
	}
	return ""
}

// connections reads the option of that name; 0 means the store's own figure.
func (o opener) connections() (int, error) {
	name := o.l.scheme + ".connections"
	text, ok := o.s.Options[name]
	if !ok {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, backend.Permanent(fmt.Errorf("option %s=%q: want a number of at least 1", name, text))
	}
	return n, nil
}

// boolOption reads the option of that name; it is false if not given.
func (o opener) boolOption(name string) (bool, error) {
	text, ok := o.s.Options[name]
	if !ok {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, backend.Permanent(fmt.Errorf("option %s=%q: want true or false", name, text))
	}
	return v, nil
}

func (o opener) store(ctx context.Context) (backend.Backend, error) {
	connections, err := o.connections()
	if err != nil {
		return nil, err
	}
	switch o.l.scheme {
	case "local":
		openDir := local.Open
		if o.why == fresh {
			openDir = local.Create
		}
		b, err := openDir(o.l.path, connections)
		if err != nil {
			return nil, err
		}
		return backend.LimitRate(b, o.up, o.down), nil
	case "rest":
		return o.rest(ctx, connections)
	case "s3":
		return o.s3(ctx, connections)
	case "sftp":
		return o.sftp(ctx, connections)
	case "rclone":
		return o.rclone(ctx, connections)
	}
	return nil, backend.Permanent(errors.New("no location given"))
}

func (o opener) rest(ctx context.Context, connections int) (backend.Backend, error) {
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	cfg := rest.Config{URL: o.l.url, Connections: connections, Transport: transport}
	if o.l.user != nil {
		cfg.Username = o.l.user.Username()
		cfg.Password, _ = o.l.user.Password()
	} else {
		cfg.Username, cfg.Password = o.env("RESTIC_REST_USERNAME"), o.env("RESTIC_REST_PASSWORD")
	}
	return nonNil(o.openREST(ctx, cfg))
}

func (o opener) openREST(ctx context.Context, cfg rest.Config) (*rest.Backend, error) {
	if o.why == fresh {
		return rest.Create(ctx, cfg)
	}
	return rest.Open(cfg)
}

func (o opener) rclone(ctx context.Context, connections int) (backend.Backend, error) {
	args, err := SplitCommand(o.s.Options["rclone.args"])
	if err != nil {
		return nil, fmt.Errorf("option rclone.args: %w", err)
	}
	program, err := SplitCommand(o.s.Options["rclone.program"])
	if err != nil {
		return nil, fmt.Errorf("option rclone.program: %w", err)
	}
	cfg := rclone.Config{Remote: o.l.path, Args: args, Upload: o.up, Download: o.down}
	if len(program) > 0 {
		cfg.Program = program[0]
	}
	b, err := o.openREST(ctx, rest.Config{URL: rcloneURL(), Connections: connections, Transport: rclone.Transport(cfg)})
	if err != nil {
		return nil, err
	}
	return located{b, o.l}, nil
}

// located says where a repository really is.
type located struct {
	backend.Backend
	l Location
}

func (b located) Location() string { return b.l.String() }

func (o opener) s3(ctx context.Context, connections int) (backend.Backend, error) {
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	creds, err := o.s3Credentials(transport)
	if err != nil {
		return nil, err
	}
	region := o.s.Options["s3.region"]
	if region == "" {
		region = o.env("AWS_DEFAULT_REGION")
	}
	listV1, err := o.boolOption("s3.list-objects-v1")
	if err != nil {
		return nil, err
	}
	cfg := s3.Config{
		Endpoint: o.l.url.Host, HTTP: o.l.url.Scheme == "http", Bucket: o.l.bucket, Prefix: o.l.prefix, Region: region,
		Lookup: o.s.Options["s3.bucket-lookup"], StorageClass: o.s.Options["s3.storage-class"],
		Credentials: creds, ListV1: listV1, Connections: connections, Transport: transport,
	}
	if o.why == fresh {
		return nonNil(s3.Create(ctx, cfg))
	}
	return nonNil(s3.Open(ctx, cfg))
}

// s3Credentials looks where AWS's own tools look: variables, the shared file, the machine's role.
func (o opener) s3Credentials(transport http.RoundTripper) (*credentials.Credentials, error) {
	if anonymous, err := o.boolOption("s3.unsafe-anonymous-auth"); err != nil {
		return nil, err
	} else if anonymous {
		return credentials.New(&credentials.Static{Value: credentials.Value{SignerType: credentials.SignatureAnonymous}}), nil
	}
	key, secret := o.env("AWS_ACCESS_KEY_ID"), o.env("AWS_SECRET_ACCESS_KEY")
	if (key == "") != (secret == "") {
		return nil, backend.Permanent(errors.New("one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set; both are needed"))
	}
	if key != "" {
		return credentials.NewStaticV4(key, secret, o.env("AWS_SESSION_TOKEN")), nil
	}
	providers := []credentials.Provider{&credentials.FileAWSCredentials{Filename: o.env("AWS_SHARED_CREDENTIALS_FILE"), Profile: o.env("AWS_PROFILE")}}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second} // of a metadata service that is not there
	if disabled, _ := strconv.ParseBool(o.env("AWS_EC2_METADATA_DISABLED")); !disabled {
		providers = append(providers, &credentials.IAM{Client: client})
	}
	creds := credentials.NewChainCredentials(providers)
	if v, err := creds.GetWithContext(&credentials.CredContext{Client: client}); err != nil || v.AccessKeyID == "" {
		return nil, backend.Permanent(errors.New("no S3 credentials found (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for public buckets -o s3.unsafe-anonymous-auth=true)"))
	}
	return creds, nil
}

func (o opener) sftp(ctx context.Context, connections int) (backend.Backend, error) {
	command, err := SplitCommand(o.s.Options["sftp.command"])
	if err != nil {
		return nil, fmt.Errorf("option sftp.command: %w", err)
	}
	args, err := SplitCommand(o.s.Options["sftp.args"])
	if err != nil {
		return nil, fmt.Errorf("option sftp.args: %w", err)
	}
	if len(command) > 0 && len(args) > 0 {
		return nil, backend.Permanent(errors.New("options sftp.command and sftp.args exclude each other"))
	}
	cfg := sftp.Config{
		Host: o.l.host, Port: o.l.port, Path: o.l.path, Args: args, Command: command, Connections: connections,
		Upload: o.up, Download: o.down,
	}
	if o.l.user != nil {
		cfg.User = o.l.user.Username()
	}
	if o.why == fresh {
		return nonNil(sftp.Create(ctx, cfg))
	}
	return nonNil(sftp.Open(ctx, cfg))
}

// nonNil keeps a nil pointer from becoming an interface that is not nil.
func nonNil[B backend.Backend](b B, err error) (backend.Backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// SplitCommand cuts a command line, as options and RESTIC_PASSWORD_COMMAND hold it, at white space; quotes of either
// kind hold words together, and a backslash outside single quotes takes the next character as it is.
func SplitCommand(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quote := false, rune(0)
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, inWord = r, true
		case quote == 0 && (r == ' ' || r == '\t' || r == '\n'):
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, backend.Permanent(errors.New("a quote or backslash is left open"))
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
