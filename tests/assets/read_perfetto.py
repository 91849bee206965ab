"""Reads a trace by Perfetto's own definitions, and prints its slices as JSON: what is not as they say is an error.

Slices of a track must nest: each end is of the slice that began last and is open.
"""

import json
import sys

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto

BUILTIN_BOOTTIME = 6


def value(annotation):
    return getattr(annotation, annotation.WhichOneof("value"))


def main(path):
    trace = proto.Trace()
    with open(path, "rb") as file:
        data = file.read()
    assert trace.ParseFromString(data) == len(data)
    # What the definitions do not know would be lost by this.
    trace.DiscardUnknownFields()
    assert trace.ByteSize() == len(data), "there are fields that the definitions do not know"
    tracks, counters, open_slices, slices, counts, last = {}, set(), {}, [], {}, 0
    for packet in trace.packet:
        assert packet.trusted_packet_sequence_id, packet
        kind = packet.WhichOneof("data")
        if kind == "clock_snapshot":
            assert packet.clock_snapshot.primary_trace_clock == BUILTIN_BOOTTIME
        elif kind == "track_descriptor":
            track = packet.track_descriptor
            assert track.uuid not in tracks, track
            assert not track.parent_uuid or track.parent_uuid in tracks, track
            tracks[track.uuid] = track.name or track.process.process_name
            if track.HasField("counter"):
                counters.add(track.uuid)
        elif kind == "track_event":
            event = packet.track_event
            assert packet.timestamp >= last, "time goes back"
            last = packet.timestamp
            stack = open_slices.setdefault(event.track_uuid, [])
            if event.type == proto.TrackEvent.TYPE_SLICE_BEGIN:
                slice = {
                    "track": tracks[event.track_uuid],
                    "name": event.name,
                    "from_ns": packet.timestamp,
                    "depth": len(stack),
                    "flows": list(event.flow_ids) + list(event.terminating_flow_ids),
                    "arguments": {it.name: value(it) for it in event.debug_annotations},
                }
                stack.append(slice)
                slices.append(slice)
            elif event.type == proto.TrackEvent.TYPE_SLICE_END:
                slice = stack.pop()
                slice["duration_ns"] = packet.timestamp - slice["from_ns"]
            elif event.type == proto.TrackEvent.TYPE_COUNTER:
                assert event.track_uuid in counters, event
                name = tracks[event.track_uuid]
                counts[name] = counts.get(name, 0) + 1
            else:
                raise AssertionError(event)
        else:
            raise AssertionError(packet)
    assert not any(open_slices.values()), "slices without an end"
    json.dump({"packets": len(trace.packet), "slices": slices, "counters": counts}, sys.stdout)


main(sys.argv[1])
