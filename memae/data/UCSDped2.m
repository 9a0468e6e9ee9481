% Abnormal frames of UCSD Ped2's test videos, in the order of their names (1-based, inclusive).
TestVideoFile = {};
TestVideoFile{end+1}.gt_frame = [61:180];
TestVideoFile{end+1}.gt_frame = [95:180];
TestVideoFile{end+1}.gt_frame = [1:146];
TestVideoFile{end+1}.gt_frame = [31:180];
TestVideoFile{end+1}.gt_frame = [1:129];
TestVideoFile{end+1}.gt_frame = [1:159];
TestVideoFile{end+1}.gt_frame = [46:180];
TestVideoFile{end+1}.gt_frame = [1:180];
TestVideoFile{end+1}.gt_frame = [1:120];
TestVideoFile{end+1}.gt_frame = [1:150];
TestVideoFile{end+1}.gt_frame = [1:180];
TestVideoFile{end+1}.gt_frame = [88:180];
