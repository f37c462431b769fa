from importlib.resources import files

import numpy as np

from probdeblend.simulation import tables


def test_shipped_table_is_what_the_function_writes(tmp_path, monkeypatch):
    rows = [0, 20, 36]
    monkeypatch.setattr(tables, "TABLE_INDEX", tables.TABLE_INDEX[rows])
    tables.write_sersic_table(tmp_path / "table.npy")
    shipped = np.load(files("probdeblend") / "data" / "sersic_table.npy", allow_pickle=False)
    assert shipped.shape == (64, 248)
    np.testing.assert_allclose(np.load(tmp_path / "table.npy"), shipped[rows], rtol=1e-5, atol=1e-8)
