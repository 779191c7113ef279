#!/usr/bin/python3
"""A backup host in Python: loads vmkeep-plugin without any of vmkeep's code, by the protocol vmkeep.plugin.v1.

It needs Debian's python3-grpcio, python3-protobuf and protobuf-compiler. The repository and vSphere come from the
variables RESTIC_REPOSITORY, RESTIC_PASSWORD, GOVC_URL, GOVC_USERNAME, GOVC_PASSWORD and VMKEEP_THUMBPRINT.

    host.py --plugin bin/vmkeep-plugin info
    host.py --plugin bin/vmkeep-plugin init | machines | points
    host.py --plugin bin/vmkeep-plugin backup NAME...
    host.py --plugin bin/vmkeep-plugin cat POINT DISK > disk.raw
    host.py --plugin bin/vmkeep-plugin ls POINT [PATH] | stat POINT PATH | get POINT PATH > file | tar POINT PATH > files.tar
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import uuid

import grpc
from google.protobuf import descriptor_pb2

PROTO = pathlib.Path(__file__).resolve().parent.parent


class Failed(Exception):
    """An expected failure: what a response says in its field error."""

    def __init__(self, error):
        super().__init__(f"{error.summary}: {error.detail}" if error.detail else error.summary)
        self.error = error


def compile_protocol(directory):
    """Generates the message classes and returns the service's module."""
    protos = sorted(str(p) for p in PROTO.glob("vmkeep/plugin/v1/*.proto"))
    subprocess.run(["protoc", f"-I{PROTO}", f"--python_out={directory}", *protos], check=True)
    sys.path.insert(0, directory)
    from vmkeep.plugin.v1 import service_pb2
    return service_pb2


class Plugin:
    """A running plugin process. Its methods are the RPCs: they take the fields of the request."""

    def __init__(self, path, protocol):
        # go-plugin's handshake: the cookie says that a host starts the plugin, which then prints one line.
        description = json.loads(subprocess.run([path, "describe"], check=True, stdout=subprocess.PIPE).stdout)
        self.directory = tempfile.TemporaryDirectory(prefix="vmkeep-")
        env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        env[description["cookie_key"]] = description["cookie_value"]
        env["PLUGIN_PROTOCOL_VERSIONS"] = "1"
        env["PLUGIN_UNIX_SOCKET_DIR"] = self.directory.name
        self.process = subprocess.Popen([path], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        line = self.process.stdout.readline().decode().strip()  # 1|1|unix|/path|grpc|
        core, version, network, address, kind = line.split("|")[:5]
        if (core, version, network, kind) != ("1", "1", "unix", "grpc"):
            raise RuntimeError(f"not a plugin for this host: {line!r}")
        self.channel = grpc.insecure_channel(f"unix:{address}")
        grpc.channel_ready_future(self.channel).result(timeout=30)
        service = protocol.DESCRIPTOR.services_by_name["KeepService"]
        self.rpcs = {method.name: self._rpc(service, method) for method in service.methods}

    def _rpc(self, service, method):
        request, response = method.input_type._concrete_class, method.output_type._concrete_class
        definition = descriptor_pb2.MethodDescriptorProto()
        method.CopyToProto(definition)
        make = self.channel.unary_stream if definition.server_streaming else self.channel.unary_unary
        call = make(f"/{service.full_name}/{method.name}", request_serializer=request.SerializeToString, response_deserializer=response.FromString)
        return call, request, definition.server_streaming

    def __getattr__(self, name):
        if name.startswith("_") or "rpcs" not in self.__dict__ or name not in self.rpcs:
            raise AttributeError(name)
        call, request, streams = self.rpcs[name]
        return lambda **fields: (self._stream if streams else self._ask)(call, request(**fields))

    def _ask(self, call, request):
        answer = call(request)
        if getattr(answer, "error", None) and answer.HasField("error"):
            raise Failed(answer.error)
        return answer

    def _stream(self, call, request):
        """Yields the messages of a stream. An interrupt cancels the operation and awaits its cleanup."""
        call_id = uuid.uuid4().hex
        stream = call(request, metadata=[("vmkeep-call-id", call_id)])
        while True:
            try:
                message = next(stream, None)
            except KeyboardInterrupt:
                self.Cancel(call_id=call_id)
                continue
            if message is None:
                return
            yield message  # before its error: the last message also carries the report
            if message.HasField("error"):
                raise Failed(message.error)

    def close(self):
        """Lets the plugin clean up what it is doing, and ends it."""
        try:
            self.Drain()
        finally:
            self.channel.close()
            self.process.terminate()
            self.process.wait()
            self.process.stdout.close()
            self.directory.cleanup()


def configuration():
    env = os.environ.get
    return {
        "repository": {"location": env("RESTIC_REPOSITORY", ""), "password": env("RESTIC_PASSWORD", "")},
        "vsphere": {"url": env("GOVC_URL", ""), "username": env("GOVC_USERNAME", ""), "password": env("GOVC_PASSWORD", ""),
                    "thumbprint": env("VMKEEP_THUMBPRINT", "")},
        "state_dir": env("VMKEEP_STATE_DIR", ""),
    }


def write_frames(messages):
    """Writes frames to standard output; zeros come as a length."""
    for message in messages:
        if not message.HasField("frame"):
            continue
        frame = message.frame
        left = frame.length if not frame.data else 0
        sys.stdout.buffer.write(frame.data)
        while left > 0:
            left -= sys.stdout.buffer.write(bytes(min(left, 1 << 20)))
    sys.stdout.buffer.flush()


def run(plugin, command, args):
    if command == "info":
        info = plugin.Info(host="host.py 1").info
        print(f"{info.name} {info.version}, protocol {info.api_version}: {', '.join(info.capabilities)}")
        return
    plugin.Configure(config=configuration())
    if command == "init":
        print("repository", plugin.InitRepository().repository.id)
    elif command == "machines":
        for message in plugin.Machines():
            for machine in message.machines:
                print(machine.name, machine.power_state, *(f"{d.name}={d.capacity}" for d in machine.disks))
    elif command == "backup":
        for message in plugin.Backup(backup={"selection": {"names": args}}):
            if message.HasField("event"):
                event = message.event
                print(event.seq, event.machine, event.disk, event.phase or event.diagnostic.summary or "-", file=sys.stderr)
            if message.HasField("report"):
                for result in message.report.machines:
                    print(result.machine.name, result.point.id or f"failed: {result.err.summary}")
    elif command == "points":
        for message in plugin.Points(filter={"details": True}):
            for point in message.points:
                print(point.id, point.machine, point.time.ToJsonString(), *(f"{d.name}:{d.reason}" for d in point.disks))
    elif command == "cat":
        write_frames(plugin.ReadDisk(point=args[0], disk=args[1]))
    elif command == "ls":
        for message in plugin.ListFiles(files={"point": args[0], "path": args[1].encode() if len(args) > 1 else b""}):
            for file in message.files:
                print(file.type, file.size, file.path.decode(errors="replace"))
    elif command == "stat":
        file = plugin.StatFile(files={"point": args[0], "path": args[1].encode()}).file
        print(f"{file.type} {file.size} {file.mode:o} {file.uid}:{file.gid} {file.mod_time.ToJsonString()} {file.path.decode(errors='replace')}")
    elif command == "get":
        write_frames(plugin.ReadFile(files={"point": args[0], "path": args[1].encode()}))
    elif command == "tar":
        for message in plugin.TarFiles(files={"point": args[0], "path": args[1].encode(), "recursive": True}):
            sys.stdout.buffer.write(message.data)
    else:
        raise SystemExit(f"unknown command {command}; see --help")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugin", required=True)
    parser.add_argument("command")
    parser.add_argument("args", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        plugin = Plugin(options.plugin, compile_protocol(directory))
        try:
            run(plugin, options.command, options.args)
        except Failed as failure:
            print(f"{failure}\n  -> {failure.error.remedy}", file=sys.stderr)
            return 1
        finally:
            plugin.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
