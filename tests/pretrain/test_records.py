"""Shards: the framing is TFRecord's, damage is found and named."""

import numpy as np
import pytest
import records


def payloads(count=7):
    rng = np.random.default_rng(0)
    return [bytes(rng.integers(0, 256, 8 * i, dtype="uint8")) for i in range(count)]


def unmasked(crc):
    rotated = (int(crc) - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (b"", 0)],
)
def test_checksum_has_the_values_of_rfc_3720(data, crc):
    buffer = np.frombuffer(data, "uint8")
    assert unmasked(records.masked_crc32c(buffer, np.array([0]), np.array([len(data)]))[0]) == crc


def test_checksums_of_several_pieces_are_those_of_each():
    data = payloads()
    lengths = np.array([len(d) for d in data])
    buffer, starts = np.frombuffer(b"".join(data), "uint8"), np.cumsum(lengths) - lengths
    together = records.masked_crc32c(buffer, starts, lengths)
    for start, length, crc in zip(starts, lengths, together, strict=True):
        assert crc == records.masked_crc32c(buffer, np.array([start]), np.array([length]))[0]


def test_bytes_are_those_of_tensorflows_writer(tmp_path):
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "theirs.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads():
            writer.write(payload)
    assert path.read_bytes() == records.frames(payloads())


def test_tensorflows_pipeline_reads_a_shard(tmp_path):
    tf = pytest.importorskip("tensorflow")
    written = [([5, 6, 7], [3, 0, 1]), ([8], [3])]
    records.write_shard(tmp_path / "s", [records.pack_record(*pair) for pair in written])
    dataset = tf.data.TFRecordDataset(str(tmp_path / "s"))
    dataset = dataset.map(lambda payload: tf.reshape(tf.io.decode_raw(payload, tf.int32), (2, -1)))
    assert [record.numpy().tolist() for record in dataset] == [list(pair) for pair in written]
    assert [record.tolist() for record in records.Shards([tmp_path / "s"])] == [list(pair) for pair in written]


def test_records_of_several_shards_are_one_sequence(tmp_path):
    for name in "ab":
        records.write_shard(tmp_path / name, [records.pack_record([ord(name) + i], [3]) for i in range(3)])
    shards = records.Shards([tmp_path / "a", tmp_path / "b"])
    assert [int(shards[i][0, 0]) for i in range(len(shards))] == [97, 98, 99, 98, 99, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # nothing is left of writing aside


def test_every_flipped_byte_is_found_and_the_shard_and_record_named(tmp_path):
    good = records.frames([records.pack_record([i, i], [3, 0]) for i in range(3)])
    path = tmp_path / "train-00003-of-00008.tfrecord"
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(records.ShardError, match=rf"{path.name}: record {at // 32} "):
            records.Shards([path])


def test_truncation_is_found_and_the_shard_named(tmp_path):
    good = records.frames([records.pack_record([i, i], [3, 0]) for i in range(2)])
    path = tmp_path / "train-00000-of-00001.tfrecord"
    for size in range(1, len(good)):
        path.write_bytes(good[:size])
        if size == len(good) // 2:
            assert len(records.Shards([path])) == 1  # a whole file of fewer records; the count is prepare.py's
            continue
        with pytest.raises(records.ShardError, match=f"{path.name}: record {size // 32} at byte .* truncated"):
            records.Shards([path])


def test_a_missing_shard_is_named(tmp_path):
    for number in (0, 2):
        records.write_shard(tmp_path / records.shard_name("train", number, 3), [b""])
    with pytest.raises(records.ShardError, match="train-00001-of-00003"):
        records.find_shards(tmp_path, "train")
    assert records.find_shards(tmp_path, "valid") == []
    with pytest.raises(ValueError, match="at least one shard"):
        records.Shards([])
